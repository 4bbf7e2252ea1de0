from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spear_plugin.models.spear import (
    ReleasedModelError,
    SpearConfig,
    convert_to_released_state_dict,
    create_released_config,
    create_spear_model,
    get_spear_model_hub,
    parse_released_config,
    released_card,
)
from spear_plugin.models.zipformer import ZipformerConfig
from tests.unit.models.spear.makers import create_batch

LARGE = {
    "num_mel_bins": 128,
    "output_downsampling_factor": 1,
    "downsampling_factor": "1,2,4,8,4,2,1",
    "num_encoder_layers": "1,2,2,3,1,1,1",
    "feedforward_dim": "3072,3072,3072,3072,3072,3072,3072",
    "encoder_dim": "1024,1024,1024,1024,1024,1024,1024",
    "encoder_unmasked_dim": "512,512,512,512,512,512,512",
    "cnn_module_kernel": "31,31,15,15,15,31,31",
    "num_heads": "8,8,8,8,8,8,8",
    "pos_dim": 48,
    "causal": False,
    "chunk_size": 8,
    "left_context_frames": 128,
}
"""The file that the authors released with ``spear-large-speech``."""


def narrow_config(**sizes: Any) -> SpearConfig:
    """Return a model that the released layout can express, with stacks of two rates."""
    zipformer = ZipformerConfig(
        downsampling_factors=[1, 2],
        num_layers=[1, 2],
        encoder_dims=[32, 32],
        feedforward_dims=[32, 32],
        kernel_sizes=[15, 15],
        num_heads=[2, 2],
    )
    return SpearConfig(zipformer=replace(zipformer, **sizes))


def write_released(folder: Path, config: SpearConfig, *, num_files: int = 1) -> dict[str, torch.Tensor]:
    """Write a random model as the authors would, and return its tensors."""
    torch.manual_seed(0)
    tensors = create_spear_model(config).state_dict()
    items = list(convert_to_released_state_dict(tensors).items())
    folder.mkdir()
    for i in range(num_files):
        name = "model.safetensors" if num_files == 1 else f"model-0000{i + 1}-of-0000{num_files}.safetensors"
        save_file(dict(items[i::num_files]), folder / name)
    (folder / "config.json").write_text(json.dumps(create_released_config(config) | {"transformers_version": "4.44"}))
    return tensors


def test_the_configuration_of_large_is_the_released_one() -> None:
    config = get_spear_model_hub().get_arch_config("large")
    assert create_released_config(config) == LARGE
    parsed = parse_released_config(LARGE)
    assert parsed.target_streams == []
    assert replace(parsed.zipformer, encoder_unmasked_dims=None) == config.zipformer


@pytest.mark.parametrize("arch", ["base", "xlarge"])
def test_other_sizes_come_back_as_they_were(arch: str) -> None:
    config = get_spear_model_hub().get_arch_config(arch)
    values = create_released_config(config)
    assert create_released_config(parse_released_config(values)) == values
    assert parse_released_config(values).zipformer.encoder_dims == config.zipformer.encoder_dims
    assert values["encoder_unmasked_dim"] == ",".join([{"base": "256", "xlarge": "768"}[arch]] * 7)


def test_a_model_that_the_layout_cannot_express_is_refused() -> None:
    with pytest.raises(
        ReleasedModelError, match=r"`zipformer\.subsampling_channels`, .* \[8, 32, 128\], but is \[4, 8, 16\]"
    ):
        create_released_config(get_spear_model_hub().get_arch_config("tiny"))
    with pytest.raises(ReleasedModelError, match=r"`zipformer\.query_head_dim`, which must be 32, but is 16\."):
        create_released_config(narrow_config(query_head_dim=16))


@pytest.mark.parametrize("num_files", [1, 2])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_released_folder_loads_by_its_path(
    tmp_path: Path, num_files: int, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = write_released(
        tmp_path / "some_model", narrow_config(output_downsampling_factor=factor), num_files=num_files
    )
    monkeypatch.chdir(tmp_path)
    card = released_card(Path("some_model"))
    assert card.name == "some_model"
    model = get_spear_model_hub().load_model(card).eval()
    loaded = model.state_dict()
    assert loaded.keys() == {key for key in tensors if not key.startswith("heads.")}
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.items())
    batch = create_batch([16000])
    assert model.extract_features(batch.waveforms, batch.lengths).last.shape == (1, 46 // factor, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_dim": None}, r"config\.json: `encoder_dim` is missing\. The file must be that of a SPEAR model"),
        ({"num_heads": "2,x"}, r"`num_heads` must hold integers separated by commas, but is '2,x'"),
        ({"pos_dim": "48,48"}, r"`pos_dim` must be one integer, but is '48,48'"),
        ({"num_heads": "2"}, r"config\.json: In our names: `num_heads` must have one entry per stack"),
        ({"causal": True}, r"`causal` must be false"),
    ],
)
def test_a_damaged_configuration_is_told_with_its_file_and_field(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    values = create_released_config(narrow_config()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ReleasedModelError, match=message):
        released_card(tmp_path)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReleasedModelError, match=r"config\.json: there is no such file"):
        released_card(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ReleasedModelError, match=r"config\.json: cannot be read"):
        released_card(tmp_path)
    path.write_text(json.dumps(create_released_config(narrow_config())))
    with pytest.raises(ReleasedModelError, match=r"holds no weights \(\*\.safetensors\)"):
        released_card(tmp_path)

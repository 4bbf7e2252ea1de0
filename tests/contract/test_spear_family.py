"""What users of the family rely on: names, sizes, keys, and that a checkpoint on disk comes back as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetCard
from fairseq2.nn.utils.module import reset_non_persistent_buffers, reset_parameters, to_empty
from safetensors.torch import save_file

from spear_plugin.data.manifest import DOMAINS as DATA_DOMAINS
from spear_plugin.models.spear import (
    DOMAINS,
    SPEAR_FAMILY,
    SpearConfig,
    convert_spear_state_dict,
    convert_to_released_state_dict,
    create_spear_model,
    get_spear_model_hub,
)
from tests.common import GOLDEN_FOLDER
from tests.unit.models.spear.makers import create_batch, create_small_model, small_config

RELEASED_NUM_PARAMETERS = {"base": 93_289_489, "large": 326_951_472, "xlarge": 596_973_362}


def test_domains_have_the_numbers_that_batches_use() -> None:
    assert DOMAINS == DATA_DOMAINS


def test_family_has_its_public_names() -> None:
    hub = get_spear_model_hub()
    assert SPEAR_FAMILY == "spear"
    assert hub.get_archs() == {"tiny", "base", "large", "xlarge"}
    assert hub.get_arch_config("base") == SpearConfig()


@pytest.mark.parametrize("arch", sorted(RELEASED_NUM_PARAMETERS))
def test_sizes_are_those_of_the_released_models(arch: str) -> None:
    hub = get_spear_model_hub()
    config = hub.get_arch_config(arch)
    config.target_streams = []
    model = hub.create_new_model(config, meta=True)
    # The released models have one more vector in each layer, which nothing uses.
    num_unused = sum(n * dim for n, dim in zip(config.zipformer.num_layers, config.zipformer.encoder_dims, strict=True))
    assert sum(p.numel() for p in model.parameters()) + num_unused == RELEASED_NUM_PARAMETERS[arch]


def test_state_dict_has_the_released_keys_and_heads() -> None:
    with torch.device("meta"):
        state_dict = create_spear_model(SpearConfig()).state_dict()
    released = {}
    for line in (GOLDEN_FOLDER / "spear" / "state_dict_keys_base.txt").read_text().splitlines():
        key, shape = line.removeprefix("model.model.").split("\t")
        if re.search(r"layers\.\d+\.bypass_scale", key) is None:
            # FSDP shards along the first axis, so scales of norms have one here.
            released[key] = "(1,)" if key.endswith(".log_scale") else shape
    heads = {
        "heads.speech.weight": "(16, 256, 512)",
        "heads.speech.bias": "(16, 256)",
        "heads.audio.weight": "(8, 256, 512)",
        "heads.audio.bias": "(8, 256)",
    }
    # 12 layers with 11 whiteners each, and 2 in the front end
    training_state = {"training_state.batch_count": "(1,)", "training_state.is_white": "(134,)"}
    assert {key: str(tuple(value.shape)) for key, value in state_dict.items()} == released | heads | training_state
    assert all(isinstance(value, torch.Tensor) for value in state_dict.values())


@pytest.mark.parametrize("arch", sorted(RELEASED_NUM_PARAMETERS))
def test_exported_weights_have_exactly_the_released_keys_and_shapes(arch: str) -> None:
    lines = (GOLDEN_FOLDER / "spear" / f"state_dict_keys_{arch}.txt").read_text().splitlines()
    hub = get_spear_model_hub()
    config = hub.get_arch_config(arch)
    state_dict = hub.create_new_model(config, meta=True).state_dict()
    exported = convert_to_released_state_dict(state_dict)
    assert {key: str(tuple(value.shape)) for key, value in exported.items()} == dict(x.split("\t") for x in lines)

    config.target_streams = []
    back = convert_spear_state_dict(dict(exported), config)
    assert back.keys() == {key for key in state_dict if not key.startswith("heads.")}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_saved_model_loads_by_its_card(tmp_path: Path, suffix: str) -> None:
    model = create_small_model()
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    sizes = vars(small_config().zipformer)
    card = AssetCard(
        "spear_test",
        {
            "model_family": "spear",
            "model_arch": "base",
            "model_config": {"zipformer": sizes},
            "checkpoint": str(path),
        },
    )
    loaded = get_spear_model_hub().load_model(card, progress=False).eval()
    batch = create_batch([16000, 9000])
    expected = model.eval().extract_features(batch.waveforms, batch.lengths)
    assert torch.equal(loaded.extract_features(batch.waveforms, batch.lengths).last, expected.last)
    torch.manual_seed(0)
    loss = batch.loss_of(model)
    torch.manual_seed(0)
    assert torch.equal(batch.loss_of(loaded), loss)


def test_checkpoint_with_heads_loads_for_downstream_tasks(tmp_path: Path) -> None:
    model = create_small_model().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    config = small_config()
    config.target_streams = []
    loaded = get_spear_model_hub().load_custom_model(tmp_path / "model.pt", config, progress=False).eval()
    batch = create_batch([16000])
    features = loaded.extract_features(batch.waveforms, batch.lengths)
    assert torch.equal(features.last, model.extract_features(batch.waveforms, batch.lengths).last)


def test_model_created_without_memory_initializes_like_any_other() -> None:
    with torch.device("meta"):
        model = create_spear_model(small_config())
    to_empty(model, torch.device("cpu"))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    torch.manual_seed(0)
    reset_parameters(model)
    reset_non_persistent_buffers(model)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    batch = create_batch([16000, 9000])
    assert batch.loss_of(model).isfinite()

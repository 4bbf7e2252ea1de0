from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fairseq2.models import ModelNotKnownError
from fairseq2.nn.utils.module import reset_parameters

from spear_plugin.quantizers import (
    ClassifierQuantizer,
    ClassifierQuantizerConfig,
    FrameQuantizer,
    KMeansQuantizer,
    KMeansQuantizerConfig,
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerAssetError,
    QuantizerConfig,
    RandomProjectionQuantizer,
    RandomProjectionQuantizerConfig,
    create_mvq_quantizer,
    get_mvq_quantizer_hub,
    load_quantizer,
    load_quantizer_config,
    quantizer_identity,
    save_quantizer_asset,
)
from tests.common import assert_equal

_CONFIG = MvqQuantizerConfig(dim=8, codebook_size=16, num_codebooks=2, teacher="whisper:3", frame_rate_hz=50.0)


def _make() -> MultiCodebookQuantizer:
    quantizer = create_mvq_quantizer(_CONFIG)
    quantizer.set_statistics(torch.randn(8), torch.rand(8) + 0.5)
    return quantizer


def _assert_equal_weights(a: FrameQuantizer, b: FrameQuantizer) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert_equal(b.state_dict()[name], value)


def test_a_saved_quantizer_loads_by_folder(tmp_path: Path) -> None:
    quantizer = _make()
    save_quantizer_asset(tmp_path / "q", quantizer, _CONFIG, "spear_test_quantizer")
    loaded = load_quantizer(tmp_path / "q")
    _assert_equal_weights(quantizer, loaded)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_quantizer_config(tmp_path / "q") == _CONFIG
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == ["quantizer.safetensors", "quantizer.yaml"]


@pytest.mark.parametrize(
    ("quantizer", "config"),
    [
        (KMeansQuantizer(8, 300), KMeansQuantizerConfig(dim=8, codebook_size=300, normalize=False)),
        (
            RandomProjectionQuantizer(8, 20, 2, projection_dim=4, seed=9, normalize=True),
            RandomProjectionQuantizerConfig(dim=8, codebook_size=20, num_codebooks=2, projection_dim=4, seed=9),
        ),
        (ClassifierQuantizer(8, 300, 2), ClassifierQuantizerConfig(dim=8, codebook_size=300, num_codebooks=2)),
    ],
)
def test_quantizers_of_other_kinds_load_by_folder(
    tmp_path: Path, quantizer: FrameQuantizer, config: QuantizerConfig
) -> None:
    save_quantizer_asset(tmp_path, quantizer, config, "spear_test_quantizer")
    loaded, x = load_quantizer(tmp_path), torch.randn(30, 8)
    assert type(loaded) is type(quantizer)
    assert load_quantizer_config(tmp_path) == config
    assert quantizer_identity(loaded) == quantizer_identity(quantizer)
    assert_equal(loaded.encode(x), quantizer.encode(x))


def test_saving_again_replaces_the_quantizer(tmp_path: Path) -> None:
    save_quantizer_asset(tmp_path, _make(), _CONFIG, "spear_test_quantizer")
    quantizer = _make()
    save_quantizer_asset(tmp_path, quantizer, _CONFIG, "spear_test_quantizer")
    _assert_equal_weights(quantizer, load_quantizer(tmp_path))


def test_files_of_the_package_and_of_spear_load(tmp_path: Path) -> None:
    quantizer = _make()
    state_dict = quantizer.state_dict()
    statistics = {name: state_dict.pop(name)[None] for name in ("mean", "std")}
    hub = get_mvq_quantizer_hub()
    torch.save(state_dict, tmp_path / "package.pt")
    loaded = hub.load_custom_model(tmp_path / "package.pt", replace(_CONFIG, normalize=False))
    assert_equal(loaded.centers, quantizer.centers)
    torch.save({"quantizer": state_dict, **statistics}, tmp_path / "beside.pt")
    torch.save({**state_dict, **statistics}, tmp_path / "among.pt")
    for file in ("beside.pt", "among.pt"):
        _assert_equal_weights(quantizer, hub.load_custom_model(tmp_path / file, _CONFIG))


def test_identity_is_of_the_weights_alone() -> None:
    quantizer, other = _make(), _make()
    identity = quantizer_identity(quantizer)
    assert len(identity) == 16
    assert set(identity) <= set("0123456789abcdef")
    assert quantizer_identity(other) != identity
    other.load_state_dict(quantizer.state_dict())
    other.id_buf.zero_()
    assert quantizer_identity(other) == identity
    other.mean[0] += 0.5
    assert quantizer_identity(other) != identity


def test_meta_initialization_gives_the_same_quantizer() -> None:
    expected = create_mvq_quantizer(_CONFIG)
    torch.manual_seed(4)
    expected.reset_parameters()
    with torch.device("meta"):
        quantizer = create_mvq_quantizer(_CONFIG)
    quantizer.to_empty(device="cpu")
    torch.manual_seed(4)
    quantizer.reset_parameters()
    _assert_equal_weights(expected, quantizer)
    reset_parameters(quantizer)
    assert_equal(quantizer.entries().flatten(0, 1), quantizer.to_logits.weight)


def test_archs_are_the_papers() -> None:
    hub = get_mvq_quantizer_hub()
    assert hub.get_archs() == {"speech", "audio"}
    speech, audio = hub.get_arch_config("speech"), hub.get_arch_config("audio")
    assert (speech.dim, speech.num_codebooks, speech.normalize) == (1024, 16, True)
    assert (audio.dim, audio.num_codebooks, audio.normalize) == (1536, 8, False)


def test_a_folder_without_a_card_raises_error(tmp_path: Path) -> None:
    with pytest.raises(QuantizerAssetError, match=r"must contain quantizer\.yaml, but does not"):
        load_quantizer(tmp_path)


def test_a_card_of_something_else_raises_error(tmp_path: Path) -> None:
    (tmp_path / "quantizer.yaml").write_text("name: x\nmodel_family: spear\n")
    with pytest.raises(
        QuantizerAssetError, match=r"must have one of the model families mvq_quantizer, .*, but has spear instead"
    ):
        load_quantizer(tmp_path)


def test_an_unknown_name_raises_error() -> None:
    with pytest.raises(ModelNotKnownError, match="spear_no_such_quantizer"):
        load_quantizer("spear_no_such_quantizer")


@pytest.mark.parametrize("field", ["dim", "codebook_size", "num_codebooks"])
def test_config_names_a_wrong_size(field: str) -> None:
    result = replace(_CONFIG, **{field: 0}).validate()  # type: ignore[arg-type]
    assert result.has_error()
    assert f"`{field}` must be" in str(result)

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from spear_plugin.models.spidr import SpidrConfig, standardize_waveforms
from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.models.spear import makers as spear_makers
from tests.unit.models.spidr.makers import create_small_model, small_config
from tests.unit.teachers.common import assert_ignores_padding, noise, save_run


def _load(path: Path | str, layer: int | None = None) -> Teacher:
    return load_teacher(TeacherConfig(name="spidr", path=str(path), layer=layer), device=torch.device("cpu"))


def _group_norm_config() -> SpidrConfig:
    config = small_config()
    config.feature_extractor.mode = "group_norm"
    return config


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("kind", ["spidr", "dinosr"])
def test_layers_of_a_run_are_the_features_of_its_standardized_waveforms(
    tmp_path: Path, kind: Literal["spidr", "dinosr"], layer: int
) -> None:
    config, lengths = small_config(kind), torch.tensor([9999])
    model, waveform = create_small_model(config).eval(), noise(9999) + 0.1
    teacher = _load(save_run(tmp_path, model, "spidr", config), layer)
    with torch.no_grad():
        features = model.extract_features(standardize_waveforms(waveform, lengths), lengths)
    output = teacher(waveform, lengths)
    expected = features.layers[layer - 1]
    assert output.lengths.item() == teacher.num_frames(9999) == expected.size(1)
    assert (teacher.dim, teacher.frame_rate_hz, teacher.layer) == (32, 50.0, layer)
    assert_close(output.frames, expected, atol=1e-6)


@pytest.mark.parametrize("config", [small_config(), _group_norm_config()], ids=["layer_norm", "group_norm"])
def test_ignores_padding(tmp_path: Path, config: SpidrConfig) -> None:
    teacher = _load(save_run(tmp_path, create_small_model(config), "spidr", config))
    assert_ignores_padding(teacher, (16000, 7777, 719, 400, 399))


def test_is_named_by_its_weights(tmp_path: Path) -> None:
    model = create_small_model()
    teacher = _load(save_run(tmp_path / "a", model, "spidr", small_config()))
    with torch.no_grad():
        model.mask_embedding[0] += 1
    other = _load(save_run(tmp_path / "b", model, "spidr", small_config()))
    assert teacher.name.startswith("spidr_")
    assert teacher.name.endswith(":3")
    assert other.name != teacher.name


def test_layers_with_a_head_of_their_own_have_it(tmp_path: Path) -> None:
    model = create_small_model()
    run = save_run(tmp_path / "a", model, "spidr", small_config())
    assert _load(run, 1).heads() == {}
    (head,) = _load(run, 2).heads().values()
    assert_close(head.weight, model.heads.weight[:1], atol=0.0)
    assert_close(head.bias, model.heads.bias[:1], atol=0.0)
    config = small_config("dinosr")
    assert _load(save_run(tmp_path / "b", create_small_model(config), "spidr", config)).heads() == {}


def test_load_raises_error_when_the_layer_or_the_family_is_another(tmp_path: Path) -> None:
    run = save_run(tmp_path / "a", create_small_model(), "spidr", small_config())
    with pytest.raises(TeacherError, match=r"`layer` must be from 1 to 3, but is 4"):
        _load(run, 4)
    other = save_run(tmp_path / "b", spear_makers.create_small_model(), "spear", spear_makers.small_config())
    with pytest.raises(TeacherError, match=r"must be a SpidR or DinoSR model, but is of type SpearModel"):
        _load(other)
    with pytest.raises(TeacherError, match=r"must be a SPEAR model, but is of type SpidrModel"):
        load_teacher(TeacherConfig(name="spear", path=str(run)), device=torch.device("cpu"))

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spear_plugin.models.spear import SpearModel
from spear_plugin.quantizers import MvqQuantizerConfig, create_mvq_quantizer, save_quantizer_asset
from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.models.spear.makers import create_small_model, small_config
from tests.unit.teachers.common import assert_ignores_padding, noise, save_run


def _save(folder: Path, model: SpearModel, *, factor: int = 1) -> Path:
    return save_run(folder, model, "spear", small_config(output_downsampling_factor=factor))


def _load(path: Path | str, layer: int | None = None) -> Teacher:
    return load_teacher(TeacherConfig(name="spear", path=str(path), layer=layer), device=torch.device("cpu"))


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("factor", [1, 2])
def test_layers_of_a_run_are_the_features_of_its_model(tmp_path: Path, layer: int, factor: int) -> None:
    model, waveform = create_small_model(output_downsampling_factor=factor).eval(), noise(9999)
    teacher, lengths = _load(_save(tmp_path, model, factor=factor), layer), torch.tensor([9999])
    with torch.no_grad():
        features = model.extract_features(waveform, lengths)
    output = teacher(waveform, lengths)
    expected = features.last if layer == 3 else features.layers[0]
    assert output.lengths.item() == teacher.num_frames(9999) == expected.size(1)
    assert_close(output.frames, expected, atol=1e-5)
    assert teacher.dim == expected.size(2)
    assert teacher.frame_rate_hz == (25.0 if factor == 2 and layer == 3 else 50.0)


def test_ignores_padding_and_is_named_by_its_weights(tmp_path: Path) -> None:
    model = create_small_model()
    teacher = _load(_save(tmp_path / "a", model))
    assert_ignores_padding(teacher, (16000, 7777, 1360, 1359))
    assert_ignores_padding(_load(tmp_path / "a", 2), (16000, 7777, 1360, 300))
    with torch.no_grad():
        model.mask_emb[0] += 1
    other = _load(_save(tmp_path / "b", model))
    assert teacher.name.startswith("spear_")
    assert teacher.name.endswith(":3")
    assert other.name != teacher.name


@pytest.mark.parametrize("num_samples", [1359, 1360, 1361, 1599, 1600, 1679, 1680, 9999])
@pytest.mark.parametrize("factor", [1, 2])
def test_counts_the_models_frames(tmp_path: Path, num_samples: int, factor: int) -> None:
    model = create_small_model(output_downsampling_factor=factor).eval()
    teacher = _load(_save(tmp_path, model, factor=factor))
    waveforms = torch.zeros(1, max(num_samples, 1360))
    lengths = model.extract_features(waveforms, torch.tensor([num_samples])).lengths
    assert teacher.num_frames(num_samples) == lengths.item()


@pytest.mark.parametrize(("factor", "streams"), [(1, ["speech", "audio"]), (2, ["audio"])])
def test_the_output_has_the_heads_that_predict_one_code_for_each_frame(
    tmp_path: Path, factor: int, streams: list[str]
) -> None:
    model = create_small_model(output_downsampling_factor=factor)
    run = _save(tmp_path, model, factor=factor)
    heads = _load(run).heads()
    assert list(heads) == streams
    assert_close(heads["audio"].weight, model.get_head("audio").weight, atol=0.0)
    assert _load(run, 2).heads() == {}


def test_load_raises_error_when_there_is_no_such_model_or_layer(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"must be the output folder of a run, but holds no finished checkpoint"):
        _load(tmp_path)
    with pytest.raises(TeacherError, match=r"no_such_card: the fairseq2 asset cannot be loaded"):
        _load("no_such_card")
    _save(tmp_path, create_small_model())
    with pytest.raises(TeacherError, match=r"`layer` must be from 1 to 3, but is 0"):
        _load(tmp_path, 0)
    next(tmp_path.rglob("*.pt")).write_bytes(b"damaged")
    with pytest.raises(TeacherError, match=r"the fairseq2 asset cannot be loaded: .* Check `teacher.path`"):
        _load(tmp_path)


def test_load_raises_error_when_the_model_gives_no_features(tmp_path: Path) -> None:
    config = MvqQuantizerConfig(dim=4, codebook_size=4, num_codebooks=1)
    save_quantizer_asset(tmp_path, create_mvq_quantizer(config), config, "spear_test_quantizer")
    with pytest.raises(TeacherError, match=r"must be a SPEAR model, but is of type MultiCodebookQuantizer"):
        _load(tmp_path / "quantizer.yaml")

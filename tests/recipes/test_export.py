from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from fairseq2.device import CPU

from recipes.export import recipe as export_recipe
from recipes.export.recipe import ExportRecipe
from recipes.models import find_card, load_encoder
from spear_plugin.inference import FeatureProgram
from tests.common import assert_close, assert_equal
from tests.recipes.common import call_recipe, save_run, save_spidr_run
from tests.unit.inference.makers import create_recordings
from tests.unit.models.spear.makers import small_config

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*options: str) -> tuple[int, list[str]]:
        return call_recipe(ExportRecipe(), [str(tmp_path / "out"), "--config", *options], monkeypatch, capsys)

    return call


def save_model(folder: Path, family: str) -> Path:
    if family == "spidr":
        return save_spidr_run(folder)
    config = small_config()
    config.zipformer.num_layers = [1, 1]
    config.target_streams = []
    return save_run(folder, seed=3, config=config)


def load_program(run: Path, family: str, layers: list[int] | None = None) -> FeatureProgram:
    return FeatureProgram(load_encoder(find_card(str(run), "`model`", family), str(run), device=CPU).eval(), layers)


def read_metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layers", "batches"),
    [("spear", None, [[8_000], [8_321], [40_123]]), ("spidr", [0, 2], [[8_000], [40_123, 9_000, 31_000]])],
)
def test_onnxruntime_gives_the_features_of_the_model_for_any_length(
    family: str, layers: list[int] | None, batches: list[list[int]], export: Call, tmp_path: Path
) -> None:
    run = save_model(tmp_path / "run", family)
    # SPEAR's graph takes longer to make, so that for one utterance is tested.
    options = ["any_batch=false"] if layers is None else [f"layers={layers}"]
    assert export(f"model={run}", *options) == (0, [])
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.onnx", "config.yaml"}
    assert not list((tmp_path / "out").glob(".*"))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    program = load_program(run, family, layers)
    assert [output.name for output in session.get_outputs()] == program.output_names
    for batch in batches:
        waveforms, lengths = create_recordings(batch)
        outputs = session.run(None, {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
        with torch.inference_mode():
            expected = program(waveforms, lengths)
        assert_equal(torch.from_numpy(outputs[-1]), expected[-1])
        for output, tensor in zip(outputs[:-1], expected[:-1], strict=True):
            for row, num_frames in enumerate(expected[-1].tolist()):
                assert_close(torch.from_numpy(output[row, :num_frames]), tensor[row, :num_frames], atol=1e-3, rtol=0.0)
    metadata = read_metadata(tmp_path / "out" / "model.onnx")
    assert metadata.pop("source").startswith(f"{family}:")
    assert metadata == {
        "family": family,
        "sample_rate": "16000",
        "hop": "320",
        "frame_rate_hz": "50",
        "first_centre": "0.045" if family == "spear" else "0.0125",
        "dim": "32" if family == "spear" else "32,32",
        "layers": "last" if family == "spear" else "0,2",
        "min_samples": "8000",
    }


@pytest.mark.slow
def test_a_program_of_torch_takes_any_length(export: Call, tmp_path: Path) -> None:
    run = save_model(tmp_path / "run", "spidr")
    assert export(f"model={run}", "format=torch", "any_batch=false") == (0, [])
    files = {"metadata.json": ""}
    graph = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=files).module()
    assert json.loads(files["metadata.json"])["family"] == "spidr"
    program = load_program(run, "spidr")
    for length in (8_000, 33_333):
        inputs = create_recordings([length])
        for output, expected in zip(graph(*inputs), program(*inputs), strict=True):
            assert_close(output, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model=spear_nowhere"], "`model`: must be the name of a card, or the folder of a run"),
        (["format=onnx"], "`model` must be set to the name of a card or the folder of a run"),
        (["model={run}", "format=tflite"], "`format` must be one of onnx, torch, but is 'tflite'"),
        (["model={run}", "layers=first"], "`layers` must be all, last or a list such as [0, 5], but is 'first'"),
        (["model={run}", "layers=[0, 5]"], "`layers` must be from 0 to 1, but are [0, 5]"),
        (["model={run}", "max_difference=0"], "`max_difference` must be positive"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    export: Call, tmp_path: Path, options: list[str], message: str
) -> None:
    run = save_model(tmp_path / "run", "spear")
    code, lines = export(*(option.format(run=run) for option in options))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_another_program_is_not_overwritten(export: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").touch()
    code, lines = export("model=spear_nowhere")
    assert (code, len(lines)) == (2, 1)
    assert "model.onnx exists already: choose another OUT" in lines[0]


def test_packages_that_are_missing_are_named_with_the_extra(export: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_recipe, "find_spec", lambda name: None if name == "onnxscript" else object())
    code, lines = export("model=spear_nowhere")
    assert (code, len(lines)) == (2, 1)
    assert "`format=onnx` needs onnxscript: install the extra, spear-plugin[export]" in lines[0]


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_program_that_is_far_from_the_model_is_not_written(
    difference: float, export: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *_: Any) -> None:
        path.touch()

    monkeypatch.setattr(export_recipe, "export_program", lambda *_, **__: None)
    monkeypatch.setattr(export_recipe, "write_onnx", write)
    monkeypatch.setattr(export_recipe, "measure_onnx", lambda *_: difference)
    code, lines = export(f"model={save_model(tmp_path / 'run', 'spear')}")
    assert (code, len(lines)) == (2, 1)
    assert f"model.onnx is {difference:.2g} of the largest value from the model, more than `max_difference`" in lines[0]
    assert not list((tmp_path / "out").rglob("*.onnx"))

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from fairseq2.device import CPU

from recipes.extract.recipe import ExtractRecipe
from spear_plugin.data.features import FeatureStore
from spear_plugin.inference import extract_features_in_chunks
from spear_plugin.models.spear import get_spear_model_hub
from spear_plugin.models.spidr import standardize_waveforms
from tests.common import assert_close
from tests.recipes.common import call_recipe, create_small_spidr_model, find_run_card, save_run, save_spidr_run
from tests.recipes.test_extract import write_rows
from tests.unit.inference.makers import create_recordings
from tests.unit.models.spear.test_released import narrow_config

LENGTHS = [100_000, 30_000, 31_000]

CHUNKS: dict[str, Any] = {"chunk_seconds": 3.0, "overlap_seconds": 1.0}
OPTION = "chunks={seconds: 3.0, overlap_seconds: 1.0}"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One recording of more than two chunks, and two of less than one."""
    waveforms, _ = create_recordings(LENGTHS)
    lines = []
    for row, length in enumerate(LENGTHS):
        soundfile.write(tmp_path / f"{row}.flac", waveforms[row, :length].clamp(-1, 1).numpy(), 16_000)
        lines.append(f"{row}\t{tmp_path / f'{row}.flac'}\t{length}\t16000")
    return write_rows(tmp_path / "long.tsv", lines)


def read_clip(tmp_path: Path, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveform, _ = soundfile.read(tmp_path / f"{row}.flac", dtype="float32")
    return torch.from_numpy(waveform)[None], torch.tensor([len(waveform)])


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_long_recordings_are_extracted_in_chunks_and_others_in_one_pass(
    family: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if family == "spear":
        save_run(run, seed=4, config=narrow_config())
        model = get_spear_model_hub().load_model(find_run_card(run, "last_checkpoint"), device=CPU).eval()
    else:
        save_spidr_run(run)
        model = create_small_spidr_model()  # type: ignore[assignment]
    for out, layers in (("layers", "[0, 2]"), ("last", "last")):
        options = [f"source.checkpoint={run}", f"corpus.manifest={manifest}", OPTION, f"layers={layers}"]
        arguments = [str(tmp_path / out), "--config", *options]
        assert call_recipe(ExtractRecipe(), arguments, monkeypatch, capsys) == (0, [])
    stores = [FeatureStore(tmp_path / out) for out in ("layers", "last")]
    assert [(store.meta.layers, store.meta.dim) for store in stores] == [([0, 2], 32), ("last", 32)]
    assert all(store.meta.source.endswith(":chunks:3:1") for store in stores)
    for row in range(len(LENGTHS)):
        waveforms, lengths = read_clip(tmp_path, row)
        if family == "spidr":
            waveforms = standardize_waveforms(waveforms, lengths)
        expected = extract_features_in_chunks(model, waveforms, lengths, **CHUNKS)
        stored = stores[0][str(row)]
        assert_close(stored[0], expected.layers[0][0], atol=1e-5)
        assert_close(stored[1], expected.layers[2][0], atol=1e-5)
        last = expected.last if family == "spear" else expected.layers[-1]
        assert_close(stores[1][str(row)], last[0], atol=1e-5)
        if row > 0:
            assert_close(stored[0], model.extract_features(waveforms, lengths).layers[0][0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["source.kind=log_mel", OPTION], "`chunks` must not be set for log-mel: only models are read in chunks"),
        (["chunks={seconds: 3.0, overlap_seconds: 0.01}"], "`chunks`: `overlap_seconds` must be at least"),
        (["chunks={seconds: 3.0, overlap_seconds: 3.0}"], "`overlap_seconds` must be between 0 and `seconds` (3)"),
    ],
)
def test_chunks_that_cannot_be_are_told_in_one_line(
    manifest: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = save_run(tmp_path / "run", seed=4, config=narrow_config())
    arguments = [str(tmp_path / "out"), "--config", f"source.checkpoint={run}", f"corpus.manifest={manifest}", *options]
    code, lines = call_recipe(ExtractRecipe(), arguments, monkeypatch, capsys)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]

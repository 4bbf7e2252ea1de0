"""Cuts that lhotse itself wrote become a manifest and a code store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, NumpyFilesWriter, NumpyHdf5Writer, Recording, SupervisionSegment

from recipes.corpus.console import CorpusError
from recipes.corpus.lhotse import main
from spear_plugin.data.codes import CodeStore
from spear_plugin.data.manifest import manifest_digest, read_manifest

CODES = ["--codes", "codebook_indexes", "--teacher", "toy:1", "--quantizer", "q"]


def make_codes(index: int) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
    return np.random.default_rng(index).integers(0, 256, (50, 4)).astype(np.int16)


def write_cuts(folder: Path, storage: str) -> Path:
    """Write three whole cuts with codes, and one that is a piece."""
    cuts = []
    writer_class = NumpyHdf5Writer if storage == "hdf5" else NumpyFilesWriter
    with writer_class(folder / "codes.h5" if storage == "hdf5" else folder / "codes") as writer:
        for index in range(3):
            path = folder / f"{index}.wav"
            soundfile.write(path, np.zeros(16_000 + index), 16_000)
            cut = Recording.from_file(path).to_cut()
            cut.id = f"cut-{index}"
            cut.supervisions = [
                SupervisionSegment(f"b{index}", cut.recording_id, 0.5, 0.5, text=" two\twords", speaker="s"),
                SupervisionSegment(f"a{index}", cut.recording_id, 0.0, 0.5, text="first", speaker="s", language="en"),
            ]
            cut.codebook_indexes = writer.store_array(cut.id, make_codes(index), frame_shift=0.02, temporal_dim=0)
            cuts.append(cut)
    cuts.append(cuts[0].truncate(offset=0.2, duration=0.5))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


@pytest.mark.parametrize("storage", ["hdf5", "files"])
def test_cuts_become_rows_and_codes(tmp_path: Path, storage: str) -> None:
    for _ in range(2):  # again changes nothing
        main([str(tmp_path / "out"), str(write_cuts(tmp_path, storage)), *CODES])

    rows = read_manifest(tmp_path / "out" / "manifest.tsv")
    store = CodeStore(tmp_path / "out" / "codes")

    assert [(row.id, row.num_samples, row.path) for row in rows] == [
        (f"cut-{index}", 16_000 + index, tmp_path / f"{index}.wav") for index in range(3)
    ]
    assert {(row.text, row.speaker, row.language, row.domain) for row in rows} == {
        ("first two words", "s", "", "speech")
    }
    assert store.identity.frame_rate_hz == 50.0
    assert store.identity.manifest == manifest_digest(tmp_path / "out" / "manifest.tsv")
    for index in range(3):
        assert (store[f"cut-{index}"] == make_codes(index)).all()
    assert "is a piece of its recording" in (tmp_path / "out" / "failed.tsv").read_text()


def test_faults_are_one_line(tmp_path: Path) -> None:
    cuts = write_cuts(tmp_path, "files")
    whole = cuts.read_bytes()

    def error(match: str, *arguments: str) -> None:
        with pytest.raises(CorpusError, match=match) as info:
            main([str(tmp_path / "out"), str(cuts), *arguments])
        assert "\n" not in str(info.value)

    error(r"from 0 to 9", *CODES, "--codebook-size", "10")
    error(r"none of its 4 cuts can be used", *CODES, "--codes", "other")
    cuts.write_bytes(whole[: len(whole) // 2])
    error(r"behind line \d+: is cut off")
    cuts = cuts.with_suffix("")
    cuts.write_text('{"id": "a", "type": "MonoCut", "start": 0, "recording": {}}\n')
    error(r"line 1: is not a cut of lhotse \(KeyError\('sources'\)\)")

    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), str(cuts), "--codes", "codebook_indexes"])

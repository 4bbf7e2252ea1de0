"""Cuts that lhotse itself wrote become a manifest and a code store."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, NumpyFilesWriter, NumpyHdf5Writer, Recording, SupervisionSegment
from lhotse.utils import fastcopy

from recipes.corpus.console import CorpusError
from recipes.corpus.lhotse import main
from spear_plugin.data.audio import inspect_audio
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


def write_shar(folder: Path) -> Path:
    """Write five cuts of one second: all but the last have codes, the last but one has no recording."""
    cuts = list(CutSet.from_file(write_cuts(folder, "files")))
    cuts = [*cuts[:3], fastcopy(cuts[0], id="silent", recording=None), fastcopy(cuts[0], id="part/bare", custom=None)]
    (folder / "shar").mkdir()
    fields = {"recording": "flac", "codebook_indexes": "numpy"}
    CutSet.from_cuts(cuts).to_shar(folder / "shar", fields=fields, shard_size=2)
    return folder / "shar"


def test_a_shar_folder_becomes_rows_that_lead_into_it_and_codes(tmp_path: Path) -> None:
    shar = write_shar(tmp_path)
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    for _ in range(2):
        main([str(tmp_path / "out"), str(shar), *CODES])

    rows = read_manifest(tmp_path / "out" / "manifest.tsv")
    store = CodeStore(tmp_path / "out" / "codes")
    tars = [shar / f"recording.00000{index}.tar" for index in range(3)]

    assert [(row.id, row.path) for row in rows] == [
        ("cut-0", tars[0] / "cut-0.flac"), ("cut-1", tars[0] / "cut-1.flac"), ("cut-2", tars[1] / "cut-2.flac")
    ]  # fmt: skip
    assert store.identity.manifest == manifest_digest(tmp_path / "out" / "manifest.tsv")
    for index, row in enumerate(rows):
        assert inspect_audio(row.path).num_samples == row.num_samples == 16_000 + index
        assert row.text == "first two words"
        assert (store[row.id] == make_codes(index)).all()
    failed = (tmp_path / "out" / "failed.tsv").read_text()
    assert "silent\tis a MonoCut without a recording" in failed
    assert "part/bare\thas no `codebook_indexes`" in failed

    main([str(tmp_path / "audio"), str(shar)])
    assert read_manifest(tmp_path / "audio" / "manifest.tsv")[3].path == tars[2] / "part" / "bare.flac"


def test_codes_written_beside_an_older_shar_folder_are_found(tmp_path: Path) -> None:
    shar = write_shar(tmp_path)
    for path in sorted(shar.glob("cuts.*")):
        with gzip.open(path, "rt") as stream:
            entries = [json.loads(line) for line in stream]
        for entry in entries:
            entry.pop("custom", None)
        with gzip.open(path, "wt") as stream:
            stream.writelines(json.dumps(entry) + "\n" for entry in entries)
    main([str(tmp_path / "out"), str(shar), *CODES])
    assert (CodeStore(tmp_path / "out" / "codes")["cut-1"] == make_codes(1)).all()


def test_faults_of_a_shar_folder_are_one_line(tmp_path: Path) -> None:
    shar = write_shar(tmp_path)

    def error(match: str, *arguments: str) -> None:
        with pytest.raises(CorpusError, match=match) as info:
            main([str(tmp_path / "out"), str(shar), *arguments])
        assert "\n" not in str(info.value)

    codes, audio = shar / "codebook_indexes.000001.tar", shar / "recording.000000.tar"
    content = codes.read_bytes()
    codes.write_bytes((shar / "codebook_indexes.000000.tar").read_bytes())
    error(r"codebook_indexes.000001.tar: has 'cut-0' where cuts.000001.jsonl.gz has 'cut-2'. Restore", *CODES)
    codes.write_bytes(content[:700])
    error(r"codebook_indexes.000001.tar: is no uncompressed archive of Shar, or damaged", *CODES)
    codes.unlink()
    error(r"codebook_indexes.000001.tar: is missing, although cuts.000001.jsonl.gz is there", *CODES)
    with tarfile.open(audio, "w") as archive:
        archive.add(tmp_path / "cuts.jsonl.gz", "cut-0.flac")
        archive.add(tmp_path / "cuts.jsonl.gz", "cut-1.flac")
    error(r"recording.000000.tar: 'cut-0.flac' is followed by 'cut-1.flac'")
    with tarfile.open(audio, "w") as archive:
        pass
    error(r"recording.000000.tar: ends where cuts.000000.jsonl.gz has 'cut-0'")
    shar = shar / "cuts.000000.jsonl.gz"
    error(r"none of its 2 cuts can be used")
    assert "Name the folder in place of the cuts" in (tmp_path / "out" / "failed.tsv").read_text()
    shar = tmp_path
    (tmp_path / "cuts.jsonl.gz").unlink()
    error("holds no cuts of lhotse")


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

"""Audio inside tar archives: read as from files, and every fault is one clear line."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.corpus.console import CorpusError
from recipes.corpus.shards import main
from spear_plugin.data.audio import AudioError, inspect_audio, read_audio
from spear_plugin.data.dataset import SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest, write_manifest
from spear_plugin.data.options import ReaderOptions
from tests.unit.data.common import STREAMS, make_corpus, make_gangs


def make_loose(folder: Path, num_files: int = 5) -> Path:
    """Write files of about 0.4 MB and a manifest with one more row, whose file is missing."""
    folder.mkdir()
    rows = []
    for index in range(num_files):
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, 200_000)
        soundfile.write(folder / f"{index}.wav", noise, 16_000, subtype="PCM_16")
    for index in range(num_files + 1):
        path = folder / f"{index}.wav"
        rows.append(
            ManifestRow(id=f"a/{index}", path=path, num_samples=200_000, sample_rate=16_000, domain="speech", text="x")
        )
    write_manifest(folder / "m.tsv", rows)
    return folder / "m.tsv"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    main([str(tmp_path / "out"), str(make_loose(tmp_path / "loose")), "--shard-megabytes", "1"])
    return tmp_path / "out"


def test_shards_hold_what_the_files_held(sharded: Path) -> None:
    loose = list(read_manifest(sharded.parent / "loose" / "m.tsv"))[:5]
    table = read_manifest(sharded / "manifest.tsv")

    assert [row.path.parent.name for row in table] == [f"shard-0000{index // 2}.tar" for index in range(5)]
    assert table.shards is not None
    assert len(set(table.shards.tolist())) == 3
    assert (table.shards[0], table.shards[2]) == (table.shards[1], table.shards[3])
    assert "5.wav" in (sharded / "failed.tsv").read_text()
    for row, original in zip(table, loose, strict=True):
        assert (row.id, row.text, row.num_samples) == (original.id, original.text, original.num_samples)
        assert (read_audio(row.path) == read_audio(original.path)).all()
        piece = read_audio(row.path, start=3.0, duration=1.5)
        assert (piece == read_audio(original.path, start=3.0, duration=1.5)).all()
        assert inspect_audio(row.path).num_samples == 200_000


def test_a_run_that_is_started_again_writes_what_is_missing(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.tar"))
    before = [shard.read_bytes() for shard in shards]
    times = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].write_bytes(before[1][:1000])
    digest = manifest_digest(sharded / "manifest.tsv")

    main([str(sharded), str(sharded.parent / "loose" / "m.tsv"), "--shard-megabytes", "1"])

    assert [shard.read_bytes() for shard in shards] == before
    assert [shard.stat().st_mtime_ns == time for shard, time in zip(shards, times, strict=True)] == [True, False, True]
    assert manifest_digest(sharded / "manifest.tsv") == digest


def test_faults_are_one_line(sharded: Path) -> None:
    path = read_manifest(sharded / "manifest.tsv")[0].path
    shard = path.parent
    content = shard.read_bytes()

    def error(match: str, member: Path = path) -> None:
        with pytest.raises(AudioError, match=match) as info:
            read_audio(member)
        assert "\n" not in str(info.value)

    error("the shard has no such member", shard / "none.wav")
    error("its shard is missing", shard.with_name("shard-9.tar") / "a.wav")
    flipped = bytearray(content)
    flipped[5_000] ^= 1
    shard.write_bytes(flipped)
    error("its bytes in the shard have changed")
    shard.write_bytes(content[:300_000])
    error("cut off, or another one")
    shard.with_name(shard.name + ".index").unlink()
    error("cut off")
    shard.write_bytes(content + bytes(512))
    shard.with_name(shard.name + ".index").write_bytes(b"nothing")
    error("index is damaged. Delete it")
    with pytest.raises(CorpusError, match="is in a shard already"):
        main([str(sharded.parent / "again"), str(sharded / "manifest.tsv")])


def test_archives_of_others_get_an_index_when_they_are_first_read(tmp_path: Path) -> None:
    audio = make_loose(tmp_path / "loose", 1).with_name("0.wav").read_bytes()
    with tarfile.open(tmp_path / "web.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("./long/" + "n" * 150 + ".wav", "b.wav"):
            entry = tarfile.TarInfo(name)
            entry.size = len(audio)
            archive.addfile(entry, io.BytesIO(audio))

    assert read_audio(tmp_path / "web.tar" / "long" / ("n" * 150 + ".wav")).size == 200_000
    assert (tmp_path / "web.tar.index").is_file()

    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(tmp_path / "web.tar", "a")
    with pytest.raises(AudioError, match="is no uncompressed tar archive"):
        read_audio(tmp_path / "packed.tar" / "a")


def test_a_reader_of_shards_goes_on_in_the_middle_and_counts_what_it_skips(tmp_path: Path) -> None:
    loose = make_corpus(tmp_path, "speech", [1.0 + 0.1 * index for index in range(10)])
    main([str(tmp_path / "out"), str(loose.manifest)])
    corpus = replace(loose, manifest=tmp_path / "out" / "manifest.tsv")
    shard = tmp_path / "out" / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[2_000] ^= 1  # in the first member
    shard.write_bytes(content)
    options = ReaderOptions(max_batch_seconds=4.0, min_seconds=0.2, max_seconds=2.0, num_buckets=2, streams=STREAMS)
    dataset = open_spear_dataset(SpearDatasetConfig(train=[corpus]))

    reader = dataset.create_reader("train", make_gangs(), options=options)
    first = [next(reader)[0] for _ in range(7)]
    state = reader.state_dict()
    rest = [next(reader)[0] for _ in range(9)]
    resumed = dataset.create_reader("train", make_gangs(), options=options)
    resumed.load_state_dict(state)

    for batch in rest:
        again = next(resumed)[0]
        assert (again.ids, again.starts) == (batch.ids, batch.starts)
        assert (again.waveforms == batch.waveforms).all()
    assert sum(batch.num_skipped for batch in first + rest) > 0
    assert {id_ for batch in first + rest for id_ in batch.ids} == {f"speech{index}" for index in range(1, 10)}

"""Audio inside archives: read as from files, and every fault is one clear line."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from recipes.corpus.console import CorpusError
from recipes.corpus.manifest import main as write_manifest_of_folder
from recipes.corpus.shards import main
from spear_plugin.data import archives
from spear_plugin.data.audio import AudioError, inspect_audio, read_audio
from spear_plugin.data.audio_shards import read_member
from spear_plugin.data.dataset import SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest, write_manifest
from spear_plugin.data.options import ReaderOptions
from spear_plugin.data.scan import AudioFolderError
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


@pytest.fixture(params=["tar", "zip", "parquet"])
def arguments(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """Of the command that has been run."""
    manifest = make_loose(tmp_path / "loose")
    arguments = [str(tmp_path / "out"), str(manifest), "--shard-megabytes", "1", "--format", request.param]
    main(arguments)
    return arguments


@pytest.fixture
def sharded(arguments: list[str]) -> Path:
    return Path(arguments[0])


def test_shards_hold_what_the_files_held(sharded: Path) -> None:
    loose = list(read_manifest(sharded.parent / "loose" / "m.tsv"))[:5]
    table = read_manifest(sharded / "manifest.tsv")

    assert [row.path.parent.stem for row in table] == [f"shard-0000{index // 2}" for index in range(5)]
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


def test_a_run_that_is_started_again_writes_what_is_missing(sharded: Path, arguments: list[str]) -> None:
    shards = sorted(sharded.glob(f"*.{arguments[-1]}"))
    assert len(shards) == 3
    before = [shard.read_bytes() for shard in shards]
    times = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].write_bytes(before[1][:1000])
    digest = manifest_digest(sharded / "manifest.tsv")

    main(arguments)

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
    error("its shard is missing", shard.with_name(f"shard-9{shard.suffix}") / "a.wav")
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


def test_a_zip_archive_of_others_is_read_unless_it_is_compressed(tmp_path: Path) -> None:
    audio = make_loose(tmp_path / "loose", 1).with_name("0.wav").read_bytes()
    with zipfile.ZipFile(tmp_path / "of.others.zip", "w") as archive:
        archive.mkdir("folder")
        archive.writestr("folder/a.wav", audio[:100])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("folder/a.wav", audio)  # the last one counts, as where it is unpacked
        entry = zipfile.ZipInfo("b.wav")
        entry.extra = struct.pack("<HHBI", 0x5455, 5, 1, 0)  # a time, as Info-ZIP adds it
        archive.writestr(entry, audio)
    for name in ("folder/a.wav", "b.wav"):
        assert read_audio(tmp_path / "of.others.zip" / name).size == 200_000

    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", audio)
    with pytest.raises(AudioError, match=r"'a\.wav' is compressed or encrypted, where members must be stored"):
        read_audio(tmp_path / "packed.zip" / "a.wav")


def write_parquet(path: Path, audio: list[dict[str, object] | None], **options: Any) -> Path:
    """Write a table as others do, with a column more."""
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"text": ["x"] * len(audio), "audio": pa.array(audio, type_)})
    pq.write_table(table, path, row_group_size=3, **options)
    return path


def test_a_parquet_file_of_others_is_read_unless_it_is_compressed(tmp_path: Path) -> None:
    first, second = (make_loose(tmp_path / name, 2).with_name("1.wav").read_bytes() for name in "ab")
    second = second[:-2] + b"\1\1"
    audio: list[dict[str, object] | None] = [
        {"bytes": first, "path": "one.wav"},
        {"bytes": second, "path": "/deep/two.wav"},
        {"bytes": first, "path": "again.wav"},  # in the dictionary, before the second
        None,
        {"bytes": None, "path": "elsewhere.wav"},
        {"bytes": second, "path": None},
    ]
    path = write_parquet(tmp_path / "a.parquet", audio, compression="none")

    assert read_member(path / "one.wav") == read_member(path / "again.wav") == first
    assert read_member(path / "deep" / "two.wav") == read_member(path / "000000005") == second
    assert read_audio(path / "000000005").size == 200_000
    with pytest.raises(AudioError, match="the shard has no such member"):
        read_member(path / "elsewhere.wav")

    for name, options, match in (
        ("b", {}, "its audio is compressed .SNAPPY., .* write it with `compression='none'`"),
        (
            "c",
            {"compression": "none", "column_encoding": {"audio.bytes": "DELTA_BYTE_ARRAY"}},
            "row 0 is not in one piece",
        ),
    ):
        other = write_parquet(tmp_path / f"{name}.parquet", audio, use_dictionary=not options, **options)
        with pytest.raises(AudioError, match=match):
            read_member(other / "one.wav")
    twice = write_parquet(tmp_path / "d.parquet", [audio[0], audio[0]], compression="none")
    with pytest.raises(AudioError, match=r"several of its rows have the path 'one\.wav'"):
        read_member(twice / "one.wav")
    pq.write_table(pa.table({"audio": ["a"]}), tmp_path / "e.parquet")
    with pytest.raises(AudioError, match="has no column `audio` with the fields `bytes` and `path`"):
        read_member(tmp_path / "e.parquet" / "a")


def test_parquet_shards_are_tables_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_ROW_GROUP_SIZE", 1_000_000)
    main([str(tmp_path / "out"), str(make_loose(tmp_path / "loose")), "--format", "parquet"])
    table = pq.read_table(tmp_path / "out" / "shard-00000.parquet")

    assert pq.read_metadata(tmp_path / "out" / "shard-00000.parquet").num_row_groups == 3
    for index, audio in enumerate(table.column("audio").to_pylist()):
        assert audio == {"path": f"{index:09d}.wav", "bytes": (tmp_path / "loose" / f"{index}.wav").read_bytes()}
        assert read_member(tmp_path / "out" / "shard-00000.parquet" / audio["path"]) == audio["bytes"]


def test_flac_of_16_bits_can_be_stored_as_wav(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (30_000, 2))
    subtypes = {"a.flac": "PCM_16", "b.flac": "PCM_24", "c.wav": "PCM_16", "gone.flac": None, "d.FLAC": "PCM_16"}
    for name, subtype in subtypes.items():
        if subtype is not None:
            soundfile.write(tmp_path / name, noise, 44_100, subtype=subtype, format=name[2:].upper())
    (tmp_path / "e.flac").write_bytes(b"no flac")
    names = [*subtypes, "e.flac"]
    rows = [
        ManifestRow(id=name, path=tmp_path / name, num_samples=30_000, sample_rate=44_100, domain="audio")
        for name in names
    ]
    write_manifest(tmp_path / "m.tsv", rows)
    arguments = [str(tmp_path / "out"), str(tmp_path / "m.tsv"), "--unpack-flac"]
    main(arguments)
    shard = tmp_path / "out" / "shard-00000.tar"
    time = shard.stat().st_mtime_ns
    main(arguments)

    table = read_manifest(tmp_path / "out" / "manifest.tsv")
    assert shard.stat().st_mtime_ns == time
    assert [row.path.suffix for row in table] == [".wav", ".flac", ".wav", ".wav", ".flac"]
    assert [row.id for row in table] == ["a.flac", "b.flac", "c.wav", "d.FLAC", "e.flac"]
    for row in table[:4]:
        assert (read_audio(row.path) == read_audio(tmp_path / row.id)).all()
    assert "gone.flac" in (tmp_path / "out" / "failed.tsv").read_text()

    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[:9_000] + bytes(9_000) + content[18_000:])
    with pytest.raises(CorpusError, match=r"a\.flac: cannot be decoded"):
        main([str(tmp_path / "again"), *arguments[1:]])


def test_archives_of_others_become_a_manifest(tmp_path: Path) -> None:
    audio = make_loose(tmp_path / "loose", 1).with_name("0.wav").read_bytes()
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    with zipfile.ZipFile(folder / "deep" / "b.zip", "w") as archive:
        archive.writestr("./x.wav", audio)
        archive.writestr("x.json", "{}")
        archive.writestr("bad.wav", b"RIFF")
    write_parquet(folder / "a.parquet", [{"bytes": audio, "path": None}], compression="none")
    arguments = [str(folder), str(tmp_path / "m.tsv"), "--domain", "audio", "--archives", "--workers", "1"]
    write_manifest_of_folder(arguments)

    rows = read_manifest(tmp_path / "m.tsv")
    assert [(row.id, row.path) for row in rows] == [
        ("a.parquet/000000000", folder / "a.parquet" / "000000000"),
        ("deep/b.zip/x", folder / "deep" / "b.zip" / "x.wav"),
    ]
    assert all(read_audio(row.path).size == row.num_samples == 200_000 for row in rows)
    assert "bad.wav" in (tmp_path / "m.bad.tsv").read_text()

    (folder / "c.tar").write_bytes(b"nothing")
    with pytest.raises(AudioFolderError, match=r"c\.tar: is no uncompressed tar archive.* Restore it, or move it"):
        write_manifest_of_folder(arguments)
    with pytest.raises(AudioFolderError, match=r"holds no archive with audio files\. Archives end in \.tar"):
        write_manifest_of_folder([str(tmp_path / "loose"), *arguments[1:]])
    with pytest.raises(AudioFolderError, match="there is no such folder"):
        write_manifest_of_folder([str(tmp_path / "none"), *arguments[1:]])


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    manifest = make_loose(tmp_path / "a.tar" / "loose", 1)
    assert read_audio(manifest.with_name("0.wav")).size == 200_000
    main([str(tmp_path / "a.tar" / "b.zip"), str(manifest), "--format", "zip"])
    assert read_audio(read_manifest(tmp_path / "a.tar" / "b.zip" / "manifest.tsv")[0].path).size == 200_000


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

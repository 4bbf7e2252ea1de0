"""The rows of each shard, against lists of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.shards import RowShards, cut_by_number, cut_by_seconds
from spear_plugin.data.manifest import ManifestRow, ManifestTable, read_manifest, write_manifest


@pytest.fixture
def rows(tmp_path: Path) -> ManifestTable:
    lengths = np.random.default_rng(0).integers(1_000, 90_000, 40)
    write_manifest(
        tmp_path / "m.tsv",
        [
            ManifestRow(
                id=str(index), path=tmp_path / "a.wav", num_samples=int(length), sample_rate=8_000, domain="speech"
            )
            for index, length in enumerate(lengths)
        ],
    )
    return read_manifest(tmp_path / "m.tsv")


def assert_same_shards(shards: RowShards, expected: list[list[ManifestRow]]) -> None:
    assert [shards[index] for index in range(len(shards))] == expected
    assert [shards.num_rows(index) for index in range(len(shards))] == [len(shard) for shard in expected]
    seconds = [sum(row.duration for row in shard) for shard in expected]
    assert [shards.seconds(index) for index in range(len(shards))] == pytest.approx(seconds)


@pytest.mark.parametrize("size", [1, 7, 40, 100])
def test_shards_have_a_number_of_rows(rows: ManifestTable, size: int) -> None:
    assert_same_shards(cut_by_number(rows, size), [rows[first : first + size] for first in range(0, 40, size)])


@pytest.mark.parametrize("max_seconds", [1.0, 10.0, 30.0, 1000.0])
def test_shards_have_no_more_audio_than_asked_for(rows: ManifestTable, max_seconds: float) -> None:
    expected: list[list[ManifestRow]] = []
    for row in rows:
        if not expected or sum(other.duration for other in expected[-1]) + row.duration > max_seconds:
            expected.append([])
        expected[-1].append(row)
    assert_same_shards(cut_by_seconds(rows, max_seconds), expected)
    assert (len(expected) == 1) == (max_seconds == 1000.0)


def test_a_manifest_without_rows_has_no_shards(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.tsv", [])
    empty = read_manifest(tmp_path / "m.tsv")
    assert (len(cut_by_number(empty, 3)), len(cut_by_seconds(empty, 3.0))) == (0, 0)

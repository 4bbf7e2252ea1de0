from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear_plugin.data.manifest import ManifestError, ManifestRow, write_manifest
from spear_plugin.data.noise import NoiseCorpus, open_noise_corpus
from spear_plugin.data.options import SpearDatasetError


def make_noise(folder: Path, sizes: list[int], *, sample_rate: int = 16_000) -> Path:
    """Write ramps, each of values of its own, so that a sample tells where it comes from."""
    rows = []

    for number, size in enumerate(sizes):
        path = folder / f"noise{number}.wav"
        soundfile.write(path, number + np.arange(size) / 16_384, sample_rate, subtype="FLOAT")
        rows.append(ManifestRow(id=path.stem, path=path, num_samples=size, sample_rate=sample_rate, domain="audio"))

    write_manifest(folder / "noise.tsv", rows)

    return folder / "noise.tsv"


def open_corpus(manifest: Path, max_skipped: int = 100) -> NoiseCorpus:
    return open_noise_corpus(manifest, sample_rate=16_000, max_skipped=max_skipped)


def draw_many(
    corpus: NoiseCorpus, length: int, number: int, *, allow_none: bool = False
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    pieces = []

    for seed in range(number):
        piece, num_skipped = corpus.draw(np.random.default_rng(seed), length)

        if piece is None:
            assert allow_none
            continue

        assert num_skipped == 0
        assert piece.shape == (length,)
        pieces.append(piece)

    return pieces


def test_a_piece_begins_anywhere_in_a_longer_recording(tmp_path: Path) -> None:
    pieces = draw_many(open_corpus(make_noise(tmp_path, [110])), 100, 300)
    starts = [round(float(piece[0]) * 16_384) for piece in pieces]

    assert set(starts) == set(range(11))
    assert all(
        np.array_equal(piece, (start + np.arange(100)) / 16_384) for piece, start in zip(pieces, starts, strict=True)
    )


def test_a_shorter_recording_is_repeated(tmp_path: Path) -> None:
    (piece,) = draw_many(open_corpus(make_noise(tmp_path, [40])), 100, 1)

    assert np.array_equal(piece, np.arange(100) % 40 / 16_384)


def test_each_recording_is_drawn_as_often_as_the_others_whatever_its_length(tmp_path: Path) -> None:
    pieces = draw_many(open_corpus(make_noise(tmp_path, [50, 5_000, 100])), 100, 600)
    counts = np.bincount([int(piece[0]) for piece in pieces])

    assert counts.shape == (3,)
    assert np.abs(counts - 200).max() < 40  # 3.4 standard deviations


def test_noise_of_another_rate_is_resampled(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    corpus = open_corpus(make_noise(tmp_path, [11_025], sample_rate=11_025))

    for length in (1_001, 4_567, 20_000, 16_000):
        piece, _ = corpus.draw(generator, length)
        assert piece is not None
        assert piece.shape == (length,)

    # A second of the ramp is a second of noise: it rises by 11,025 / 16,384.
    assert piece is not None
    assert np.ptp(piece[100:15_900]) == pytest.approx(11_025 / 16_384 * 0.9875, rel=0.01)


def test_unreadable_noise_is_named_counted_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_noise(tmp_path, [50, 50, 50])
    (tmp_path / "noise0.wav").unlink()
    (tmp_path / "noise1.wav").write_bytes(b"RIFF, and then nothing")
    corpus = open_corpus(manifest)

    with caplog.at_level(logging.WARNING, "fairseq2"):
        draws = [corpus.draw(np.random.default_rng(seed), 20) for seed in range(60)]

    numbers = [num_skipped for piece, num_skipped in draws if piece is not None and int(piece[0]) == 2]
    assert len(numbers) >= 58  # the others found a bad one ten times
    assert 60 < sum(numbers) < 200  # two bad ones before a good one on average
    # Only warnings: with the logger's level set by another test, the corpus' size is among the records.
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 2
    assert (
        sum("Skipping 'noise0' of corpus noise" in text and "there is no such file" in text for text in messages) == 1
    )
    assert sum("Skipping 'noise1' of corpus noise" in text and "noise1.wav" in text for text in messages) == 1
    assert any("(2 skipped so far)" in text for text in messages)


def test_more_unreadable_noise_than_allowed_is_an_error(tmp_path: Path) -> None:
    manifest = make_noise(tmp_path, [50] * 4)

    for number in range(4):
        (tmp_path / f"noise{number}.wav").unlink()

    with pytest.raises(SpearDatasetError, match=r"4 of 4 rows could not be read.* in corpus noise"):
        draw_many(open_corpus(manifest), 20, 10, allow_none=True)

    with pytest.raises(SpearDatasetError, match=r"2 of 4 rows could not be read, more than `max_skipped` \(1\)"):
        open_corpus(manifest, max_skipped=1).draw(np.random.default_rng(0), 20)


def test_a_manifest_without_rows_or_without_a_file_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path / "empty.tsv", [])

    with pytest.raises(SpearDatasetError, match=r"empty.tsv: the noise manifest has no rows. Add recordings or"):
        open_corpus(tmp_path / "empty.tsv")

    with pytest.raises(ManifestError, match=r"nowhere.tsv: the manifest cannot be read"):
        open_corpus(tmp_path / "nowhere.tsv")

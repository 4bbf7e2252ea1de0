"""Readers that crop: which piece of which row a batch holds, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spear_plugin.data.audio import read_audio
from spear_plugin.data.batch import CODE_PADDING, SpearBatch
from spear_plugin.data.dataset import CorpusConfig
from spear_plugin.data.options import ReaderOptions
from spear_plugin.data.pieces import draw_start, standardize
from spear_plugin.models.spidr import standardize_waveforms
from tests.common import assert_close, assert_equal
from tests.unit.data.common import SPEECH_STREAM, expected_codes, make_corpus
from tests.unit.data.test_dataset import open_reader, read_batches

DURATIONS = [0.5, 0.7, 0.9, 1.1, 3.0, 4.0]


class Masker:
    """Masks random frames of 0.1 s, so that a mask tells the generator it was drawn from."""

    def draw(self, lengths: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        return torch.rand((len(lengths), max(lengths) // 1600), generator=generator) < 0.5


OPTIONS = ReaderOptions(
    max_batch_seconds=4.0, min_seconds=0.6, max_seconds=2.0, num_buckets=2, crop=True, standardize=True, masker=Masker()
)


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusConfig:
    return make_corpus(tmp_path, "a", DURATIONS)


def read(corpus: CorpusConfig, num_batches: int = 12, **changes: object) -> list[SpearBatch]:
    return read_batches(open_reader(corpus, options=replace(OPTIONS, **changes)), num_batches)  # type: ignore[arg-type]


def test_examples_are_pieces_of_standardized_rows_as_long_as_the_shortest_of_the_batch(corpus: CorpusConfig) -> None:
    lengths, starts = set(), set()
    for batch in read(corpus):
        assert len(set(batch.seq_lens)) == 1
        assert batch.waveforms.shape[1] == batch.seq_lens[0] <= 32_000
        shortest = min(DURATIONS[int(id_[1:])] for id_ in batch.ids)
        assert batch.seq_lens[0] == round(16_000 * min(shortest, 2.0))
        for id_, start, waveform in zip(batch.ids, batch.starts, batch.waveforms, strict=True):
            whole = standardize(read_audio(corpus.manifest.parent / f"{id_}.flac", sample_rate=16_000))
            first = round(start * 16_000)
            assert_equal(waveform, torch.from_numpy(whole[first : first + batch.seq_lens[0]]))
            lengths.add(batch.seq_lens[0])
            starts.add((id_, first))
    assert len(lengths) > 1
    # Another piece in each epoch, and nothing below the minimum.
    assert len({first for id_, first in starts if id_ == "a5"}) > 1
    assert all(id_ != "a0" for id_, _ in starts)


def test_pieces_and_masks_follow_from_seed_epoch_and_examples(corpus: CorpusConfig) -> None:
    batches, again, other = read(corpus), read(corpus, num_parallel=1), read(corpus, seed=3)
    masks = []
    for batch, expected in zip(again, batches, strict=True):
        assert (batch.ids, batch.starts) == (expected.ids, expected.starts)
        assert batch.mask is not None
        assert expected.mask is not None
        assert_equal(batch.mask, expected.mask)
        masks.append(batch.mask)
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks)
    assert {pair for batch in batches for pair in zip(batch.ids, batch.starts, strict=True)} != {
        pair for batch in other for pair in zip(batch.ids, batch.starts, strict=True)
    }


def test_a_mask_stays_on_the_host(corpus: CorpusConfig) -> None:
    (batch,) = read(corpus, 1)
    batch.to(torch.device("meta"))
    assert batch.waveforms.device.type == "meta"
    assert batch.mask is not None
    assert batch.mask.device.type == "cpu"


def test_pieces_have_the_codes_of_their_place(corpus: CorpusConfig) -> None:
    for batch in read(corpus, streams={"speech": SPEECH_STREAM}):
        for row, start in enumerate(batch.starts):
            first = start * 50
            assert first == pytest.approx(round(first))
            num_frames = batch.codes["speech"].shape[1]
            codes = batch.codes["speech"][row]
            # The store is a frame short, which shows where a piece ends with its row.
            num_stored = num_frames - int((codes[-1] == CODE_PADDING).all())
            expected = expected_codes(round(first), num_stored, SPEECH_STREAM.num_codebooks)
            assert_equal(codes[:num_stored], torch.from_numpy(expected.astype(np.int16)))


def test_validation_reads_each_row_once(corpus: CorpusConfig) -> None:
    batches = read_batches(open_reader(corpus, options=replace(OPTIONS, shuffle=False)))
    assert sorted(id_ for batch in batches for id_ in batch.ids) == ["a1", "a2", "a3", "a4", "a5"]


def test_starts_are_spread_over_all_places() -> None:
    starts = [draw_start(5, seed=1, epoch=epoch, corpus="a", id_="b") for epoch in range(200)]
    assert set(starts) == set(range(5))
    assert draw_start(1, seed=1, epoch=0, corpus="a", id_="b") == 0


def test_recordings_are_standardized_as_models_expect_it() -> None:
    waveform = 3.0 + 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    expected = standardize_waveforms(waveform[None], torch.tensor([4000]))[0]
    assert_close(torch.from_numpy(standardize(waveform.numpy())), expected, atol=1e-4, rtol=0.0)
    assert np.all(standardize(np.zeros(10, dtype=np.float32)) == 0.0)

"""From manifests to batches: the order of steps, on fairseq2's native data pipeline.

Training, without end::

    count 0, 1, 2, ... -> examples of a corpus in random order, another order each epoch     metadata only
    -> weighted sample of the corpora -> buckets of like lengths                              metadata only
    -> read audio and codes, mix, pad -> drop empty batches -> prefetch

The order of a corpus is a function of (seed, epoch), and the rank takes every ``size``-th position of the endless
sequence of epochs; mixing is a function of (seed, epoch, example) and of the batch. So the state of a reader is a few
counters, whatever the size of the corpus, and no Python object carries a random state, which fairseq2 would not save.
Validation reads each example once, in the manifests' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineBuilder, read_sequence
from fairseq2.datasets import DataPipelineReader, DataReader, SyncMode
from fairseq2.gang import Gangs
from numpy.typing import NDArray

from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.options import ReaderOptions, SpearDatasetError
from spear_plugin.data.reading import BatchLoader, CorpusView, Item
from spear_plugin.data.segments import SegmentTable, create_buckets


def create_pipeline_reader(
    corpora: Sequence[CorpusView], gangs: Gangs, options: ReaderOptions
) -> DataReader[SpearBatch]:
    """Return the reader of the data-parallel rank.

    :raises SpearDatasetError: If one example alone is longer than ``max_batch_seconds``.
    """
    lengths = np.concatenate([corpus.segments.lengths for corpus in corpora])

    if lengths.max() > (max_batch_length := options.to_samples(options.max_batch_seconds)):
        raise SpearDatasetError(
            f"`max_batch_seconds` must be at least the longest example ({lengths.max() / options.sample_rate:.2f} s), "
            f"but is {options.max_batch_seconds}. Raise it or lower `max_seconds` ({options.max_seconds})."
        )

    builder = _sample(corpora, gangs, options) if options.shuffle else _enumerate(corpora, gangs)
    # one Item

    max_growth = options.to_samples(options.mixing.max_growth)
    buckets = create_buckets(lengths, options.num_buckets, max_batch_length, max_growth=max_growth)
    builder.bucket_by_length(buckets, selector="length")
    # list of Items of like length

    builder.map(BatchLoader(corpora, options), num_parallel_calls=options.num_parallel)
    # SpearBatch, or None if nothing could be read

    builder.filter(_is_batch)
    # one SpearBatch

    builder.prefetch(options.num_prefetch)

    # Training has no end that ranks would have to agree upon.
    return DataPipelineReader[SpearBatch](
        builder.and_return(),
        gangs,
        num_accumulate=options.num_accumulate,
        sync=not options.shuffle,
        sync_mode=SyncMode.UNTIL_LAST,
    )


def _sample(corpora: Sequence[CorpusView], gangs: Gangs, options: ReaderOptions) -> DataPipelineBuilder:
    def shuffled(index: int) -> DataPipeline:
        order = _ShuffledCorpus(index, corpora[index].segments, gangs.dp.rank, gangs.dp.size, options.seed)

        # `count` alone is treated as if it had no items of its own; `repeat` makes it count.
        return DataPipeline.count().map(order).repeat().and_return()

    return DataPipeline.sample(
        [shuffled(index) for index in range(len(corpora))],
        weights=[corpus.weight for corpus in corpora],
        seed=options.seed + gangs.dp.rank,
    )


def _enumerate(corpora: Sequence[CorpusView], gangs: Gangs) -> DataPipelineBuilder:
    items = [
        Item(corpus=index, segment=segment, length=int(length), epoch=0)
        for index, corpus in enumerate(corpora)
        for segment, length in enumerate(corpus.segments.lengths)
    ]

    return read_sequence(items[gangs.dp.rank :: gangs.dp.size])


def _is_batch(batch: SpearBatch | None) -> bool:
    return batch is not None


@final
class _ShuffledCorpus:
    """Maps 0, 1, 2, ... to the rank's examples of an endless sequence of epochs, each in an order of its own."""

    def __init__(self, index: int, segments: SegmentTable, rank: int, size: int, seed: int) -> None:
        self._index, self._segments = index, segments
        self._rank, self._size = rank, size
        self._seed = seed
        self._epoch = -1
        self._order: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)

    def __call__(self, count: int) -> Item:
        epoch, position = divmod(count * self._size + self._rank, len(self._segments))

        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, self._index, epoch])
            self._order = generator.permutation(np.arange(len(self._segments), dtype=np.uint32))
            self._epoch = epoch

        segment = int(self._order[position])

        return Item(corpus=self._index, segment=segment, length=int(self._segments.lengths[segment]), epoch=epoch)

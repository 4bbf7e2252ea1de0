"""The order in which a corpus is read."""

from __future__ import annotations

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

SHARDS_AT_ONCE: Final = 16
"""Shards among whose segments the order is random."""


@final
class EndlessOrder:
    """The segments of a corpus in an endless sequence of epochs, each in an order of its own.

    Args:
        num_segments: Of the corpus, at least 1.
        seed: Of all orders.
        index: Of the corpus, so that corpora of one size have different orders.
        shards: Of each segment, the number of the shard that its audio is in. Shards are then shuffled, and segments
            among each :data:`SHARDS_AT_ONCE` of them, so that all reading at one time is in a few files. None: all
            segments are shuffled.
    """

    def __init__(self, num_segments: int, seed: int, index: int, shards: NDArray[np.uint32] | None = None) -> None:
        self._num_segments = num_segments
        self._seed = seed
        self._index = index
        self._shards = shards
        self._epoch = -1
        self._order: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)

    def take(self, first: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return segments and epochs at the positions ``first`` to ``first + number - 1``."""
        epochs, places = np.divmod(np.arange(first, first + number), self._num_segments)
        segments = np.empty(number, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            segments[chosen] = self._shuffle(int(epoch))[places[chosen]]
        return segments, epochs

    def _shuffle(self, epoch: int) -> NDArray[np.uint32]:
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, self._index, epoch])
            self._order = generator.permutation(np.arange(self._num_segments, dtype=np.uint32))
            if self._shards is not None:
                self._order = self._order[self._sort_shards(generator)]
            self._epoch = epoch
        return self._order

    def _sort_shards(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return where in the order the segments of the first shards are, then those of the next, and so on."""
        assert self._shards is not None
        blocks = generator.permutation(int(np.max(self._shards)) + 1) // SHARDS_AT_ONCE
        return np.argsort(blocks.astype(np.uint32)[self._shards[self._order]], kind="stable")

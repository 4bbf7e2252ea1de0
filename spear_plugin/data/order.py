"""The order in which a corpus is read."""

from __future__ import annotations

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.seeds import derive_seed
from spear_plugin.data.text_fields import Hashes

SHARDS_AT_ONCE: Final = 16
"""Shards among whose segments the order is random."""

# Two rounds of multiplication and shift, as in the generator SplitMix64.
_MIXERS: Final = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB), (31, 1))


def shuffle_by_hash(hashes: Hashes, *seed: object) -> NDArray[np.int64]:
    """Return the places of ids (R,) in a random order that depends on their hashes and the seed alone.

    So it is the same ids that come first, wherever they stand in a manifest.
    """
    mixed = hashes ^ np.uint64(derive_seed(*seed) % 2**64)
    for shift, multiplier in _MIXERS:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(multiplier)

    return np.argsort(mixed, kind="stable")


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

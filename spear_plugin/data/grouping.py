"""Groups: batches of like lengths, one for each process, so that no process waits for one with longer audio.

Letters: E examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

Examples = NDArray[np.int64]
"""(E, 3): corpus, segment of the corpus, epoch."""


@final
@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What batches may hold."""

    num_processes: int

    max_batch_length: int
    """Samples of a batch, padding included; at least the longest example."""

    max_growth: int = 0
    """Samples by which an example may become longer in its batch. One alone in its batch does not grow."""

    num_buckets: int = 20
    """Classes of like lengths that hold about equal amounts of audio: more of them pad less and mix less."""

    seed: int = 2


def bucket_edges(lengths: NDArray[np.int64], num_buckets: int) -> NDArray[np.int64]:
    """Return the longest example of each of at most ``num_buckets`` buckets that hold about equal amounts of audio."""
    ordered = np.sort(lengths)
    amounts = np.cumsum(ordered)
    quantiles = np.arange(1, num_buckets + 1) / num_buckets * amounts[-1]
    return np.unique(ordered[np.searchsorted(amounts, quantiles).clip(max=ordered.size - 1)])


def cut_groups(examples: Examples, lengths: NDArray[np.int64], options: PlanOptions) -> tuple[list[Examples], Examples]:
    """Cut sorted examples into groups of as many as their batches may hold.

    :param lengths: (E,) of the examples, in samples.
    :return: The groups, each with the same number of examples for every process, and the last examples, fewer than
        there are processes.
    """
    num_processes, groups, first = options.num_processes, [], 0
    while (most := (lengths.size - first) // num_processes) > 0:
        most = max(min(most, options.max_batch_length // int(lengths[first] + options.max_growth)), 1)
        longest = np.maximum.accumulate(lengths[first : first + most * num_processes])[
            num_processes - 1 :: num_processes
        ]
        sizes = np.arange(1, most + 1)
        num_fitting = int(np.count_nonzero(sizes * (longest + options.max_growth) <= options.max_batch_length))
        last = first + max(num_fitting, 1) * num_processes
        groups.append(examples[first:last])
        first = last
    return groups, examples[first:]


def lengths_of(examples: Examples, lengths: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return (E,), given the lengths of the segments of each corpus."""
    result = np.empty(len(examples), dtype=np.int64)
    for index, of_corpus in enumerate(lengths):
        chosen = examples[:, 0] == index
        result[chosen] = of_corpus[examples[chosen, 1]]
    return result

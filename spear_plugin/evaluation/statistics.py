"""Measures of a test set as functions of how often each of its clusters counts, which is what a bootstrap needs.

Letters: C clusters, R resamples, M trials, N examples, V labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.evaluation.equal_error import weighted_equal_error_rates
from spear_plugin.evaluation.precision import weighted_average_precisions

_MAX_ELEMENTS: Final = 4_000_000
"""Of a table of weights; more resamples are done in pieces."""


class Statistic(Protocol):
    """A measure of one test set, such as an error rate."""

    @property
    def num_clusters(self) -> int:
        """How many clusters, such as recordings or speakers, are drawn from."""

    def values(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the measure, (R,), when cluster c counts ``draws[r, c]`` times; NaN where it has no value."""


@final
@dataclass(frozen=True)
class RatioStatistic:
    """A sum by a sum: accuracies, error rates, F-measures (2 TP by 2 TP + FP + FN)."""

    numerators: NDArray[np.float64]
    """(C,)."""

    denominators: NDArray[np.float64]
    """(C,), not negative."""

    @property
    def num_clusters(self) -> int:
        return int(self.numerators.size)

    def values(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        sums, sizes = draws @ self.numerators, draws @ self.denominators
        return np.asarray(np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0))


@final
@dataclass(frozen=True)
class EqualErrorStatistic:
    """An equal error rate; clusters are speakers, and a trial of two counts the product of theirs."""

    scores: NDArray[np.float64]
    """(M,)."""

    first: NDArray[np.int64]
    """(M,), the speaker of one side."""

    second: NDArray[np.int64]
    """(M,), the speaker of the other side; the same in a target trial."""

    @property
    def num_clusters(self) -> int:
        return int(np.concatenate([self.first, self.second]).max()) + 1

    def values(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        targets = self.first == self.second

        def rates(part: NDArray[np.float64]) -> NDArray[np.float64]:
            weights = part[:, self.first] * np.where(targets, 1.0, part[:, self.second])
            return weighted_equal_error_rates(self.scores, targets, weights)

        return _in_pieces(rates, draws, self.scores.size)


@final
@dataclass(frozen=True)
class AveragePrecisionStatistic:
    """A mean average precision; every example is a cluster."""

    scores: NDArray[np.float64]
    """(N, V)."""

    targets: NDArray[np.bool_]
    """(N, V)."""

    @property
    def num_clusters(self) -> int:
        return int(self.scores.shape[0])

    def values(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        occurs = self.targets.any(axis=0)

        def means(part: NDArray[np.float64]) -> NDArray[np.float64]:
            precisions = weighted_average_precisions(self.scores[:, occurs], self.targets[:, occurs], part)
            known = ~np.isnan(precisions)
            sums = np.where(known, precisions, 0.0).sum(axis=1)
            counts = known.sum(axis=1)
            return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))

        return _in_pieces(means, draws, self.scores.shape[0])


def _in_pieces(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], draws: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    num_rows = max(1, _MAX_ELEMENTS // width)
    return np.concatenate([function(part) for part in _rows(draws, num_rows)])


def _rows(draws: NDArray[np.float64], num_rows: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, draws.shape[0], num_rows):
        yield draws[start : start + num_rows]

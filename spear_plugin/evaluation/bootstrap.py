"""Bootstrap intervals for accuracies and error rates whose examples come in clusters.

Frames of an utterance, or words of a prompt, are not independent; resampling single examples would give intervals that
are far too narrow. Whole clusters are drawn with replacement instead, for one accuracy or for the difference of two on
the same examples (Bisani and Ney, ICASSP 2004, do so for word error rates).

Letters: N examples, C clusters, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spear_plugin.evaluation.statistics import RatioStatistic, Statistic

NUM_RESAMPLES: Final = 2000


@final
@dataclass(frozen=True)
class Interval:
    """A statistic and its percentile bootstrap interval."""

    value: float

    low: float

    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    correct: ArrayLike, clusters: ArrayLike, *, seed: int, num_resamples: int = NUM_RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return the accuracy, in [0, 1], with its interval.

    :param correct: (N,) booleans, or credits in [0, 1].
    :param clusters: (N,) any values; equal values belong together.
    :raises ValueError: If shapes differ or there are fewer than two clusters.
    """
    return _interval(np.asarray(correct, dtype=np.float64), clusters, seed, num_resamples, confidence)


def paired_bootstrap_interval(
    correct: ArrayLike,
    other_correct: ArrayLike,
    clusters: ArrayLike,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Return the difference of two accuracies on the same examples, ``correct`` minus ``other_correct``.

    Both are resampled together, so what is hard in an utterance for both cancels. The first beats the second by more
    than chance when the interval lies above zero.
    """
    difference = np.asarray(correct, dtype=np.float64) - np.asarray(other_correct, dtype=np.float64)

    return _interval(difference, clusters, seed, num_resamples, confidence)


def ratio_bootstrap_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Return the sum of numerators by that of denominators, with its interval: an error rate, for example.

    :param numerators: (C,) numbers of each cluster, such as the errors in an utterance.
    :param denominators: (C,) positive numbers, such as the words of the utterance.
    :raises ValueError: If shapes differ, a denominator is not positive or there are fewer than two clusters.
    """
    sums, sizes = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))

    if sums.shape != sizes.shape or sums.ndim != 1:
        raise ValueError(f"`denominators` must be of shape {sums.shape}, but are of {sizes.shape} instead.")

    if (sizes <= 0).any():
        raise ValueError("`denominators` must be positive.")

    return _resample(sums, sizes, seed, num_resamples, confidence)


def _interval(scores: NDArray[np.float64], clusters: ArrayLike, seed: int, num: int, confidence: float) -> Interval:
    names, index = np.unique(np.asarray(clusters), return_inverse=True)

    if index.shape != scores.shape:
        raise ValueError(f"`clusters` must have the shape of the scores {scores.shape}, but has {index.shape} instead.")

    sums = np.bincount(index, weights=scores, minlength=names.size)
    sizes = np.bincount(index, minlength=names.size).astype(np.float64)  # (N,) -> (C,)

    return _resample(sums, sizes, seed, num, confidence)


def statistic_interval(
    statistic: Statistic, *, seed: int, num_resamples: int = NUM_RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return any measure with its interval; resamples in which it has no value are left out.

    :raises ValueError: If there are fewer than two clusters, or the measure has no value.
    """
    return _resample_values(statistic.values, statistic.num_clusters, seed, num_resamples, confidence)


def paired_statistic_interval(
    statistic: Statistic, other: Statistic, *, seed: int, num_resamples: int = NUM_RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Return the difference of two measures of the same test set, ``statistic`` minus ``other``, with its interval.

    :raises ValueError: If the clusters differ in number, or there are fewer than two.
    """
    if statistic.num_clusters != other.num_clusters:
        raise ValueError(
            f"`other` must have the {statistic.num_clusters} clusters of `statistic`, but has {other.num_clusters}."
        )

    def difference(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        return statistic.values(draws) - other.values(draws)

    return _resample_values(difference, statistic.num_clusters, seed, num_resamples, confidence)


def cluster_ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: ArrayLike) -> RatioStatistic:
    """Return the sum of numerators by that of denominators, (N,) each, as a measure of the clusters (N,)."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = (
        np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=names.size)
        for values in (numerators, denominators)
    )
    return RatioStatistic(sums, sizes)


def _resample(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int, num: int, confidence: float
) -> Interval:
    return _resample_values(RatioStatistic(sums, sizes).values, sums.size, seed, num, confidence)


def _resample_values(
    values: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    num_clusters: int,
    seed: int,
    num: int,
    confidence: float,
) -> Interval:
    if num_clusters < 2:
        raise ValueError(f"`clusters` must name at least two clusters, but names {num_clusters} instead.")

    value = float(values(np.ones((1, num_clusters)))[0])
    if np.isnan(value):
        raise ValueError("the measure has no value: what it divides by, or one kind of trials, is missing.")

    # How often each cluster is drawn: (R, C)
    draws = np.random.default_rng(seed).multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num)
    resampled = values(draws.astype(np.float64))  # (R,)
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])

    return Interval(value, float(low), float(high))

"""Bootstrap intervals for accuracies and error rates whose examples come in clusters.

Frames of an utterance, or words of a prompt, are not independent; resampling single examples would give intervals that
are far too narrow. Whole clusters are drawn with replacement instead, for one accuracy or for the difference of two on
the same examples (Bisani and Ney, ICASSP 2004, do so for word error rates).

Letters: N examples, C clusters, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def _resample(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], seed: int, num: int, confidence: float
) -> Interval:
    num_clusters = sums.size

    if num_clusters < 2:
        raise ValueError(f"`clusters` must name at least two clusters, but names {num_clusters} instead.")

    # How often each cluster is drawn: (R, C)
    draws = np.random.default_rng(seed).multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num)

    resampled = (draws @ sums) / (draws @ sizes)  # (R,)

    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])

    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))

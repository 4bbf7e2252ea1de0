"""Equal error rates of verification. Letters: M trials, R weightings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the error rate, in [0, 1], where as many targets are rejected as others are accepted.

    Between two thresholds the curve of both rates is taken as straight.

    :param scores: (M,), larger for likelier targets; any monotonic scale.
    :param targets: (M,) booleans, whether both sides of a trial belong together.
    :raises ValueError: If shapes differ, or if there are only targets or none.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.bool_)
    if s.shape != t.shape or s.ndim != 1:
        raise ValueError(f"`targets` must be of shape {s.shape}, but are of {t.shape} instead.")
    if t.all() or not t.any():
        raise ValueError("`targets` must have trials of both kinds, targets and others.")
    return float(weighted_equal_error_rates(s, t, np.ones((1, s.size)))[0])


def weighted_equal_error_rates(
    scores: NDArray[np.float64], targets: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the equal error rate under each weighting of the trials, (R,); NaN where a kind of trials has no weight.

    :param scores: (M,).
    :param targets: (M,).
    :param weights: (R, M), not negative.
    """
    order = np.argsort(-scores, kind="stable")
    # Trials of one score are accepted together: thresholds are where the score changes.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    w, t = weights[:, order], targets[order]
    with np.errstate(invalid="ignore", divide="ignore"):
        accepted = [_cumulative_share(np.where(kind, w, 0.0))[:, np.append(0, last + 1)] for kind in (t, ~t)]
    misses, false_alarms = 1 - accepted[0], accepted[1]  # (R, 1 + thresholds)
    gap = misses - false_alarms  # from 1 down to -1
    index = np.clip((gap > 0).sum(axis=1, keepdims=True), 1, gap.shape[1] - 1)
    before, after = (np.take_along_axis(gap, i, axis=1) for i in (index - 1, index))
    share = np.divide(before, before - after, out=np.zeros_like(before), where=before != after)
    left, right = (np.take_along_axis(false_alarms, i, axis=1) for i in (index - 1, index))
    rates: NDArray[np.float64] = (left + share * (right - left))[:, 0]
    return np.where(np.isnan(gap).any(axis=1), np.nan, rates)


def _cumulative_share(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return which share of each row's sum the first 0, 1, 2, ... columns have, (R, 1 + M)."""
    sums = np.pad(np.cumsum(weights, axis=1), ((0, 0), (1, 0)))
    return np.asarray(sums / sums[:, -1:])

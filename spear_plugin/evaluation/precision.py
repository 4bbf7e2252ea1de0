"""How well scores rank what has a label above what has not. Letters: N examples, C labels, R weightings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score


def mean_average_precision(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """Return the mean over labels of the average precision, in [0, 1]; labels that no example has are left out.

    :param scores: (N, C), larger for likelier labels; any monotonic scale.
    :param targets: (N, C) booleans, the labels of each example.
    :raises ValueError: If shapes differ or no example has a label.
    """
    if scores.shape != targets.shape:
        raise ValueError(f"`targets` must be of shape {scores.shape}, but are of {targets.shape} instead.")

    if not (occurs := targets.any(axis=0)).any():
        raise ValueError("`targets` must have at least one label.")

    return float(average_precision_score(targets[:, occurs], scores[:, occurs], average="macro"))


def weighted_average_precisions(
    scores: NDArray[np.float64], targets: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the average precision of each label under each weighting of the examples, (R, C).

    It is NaN where no example with the label has a weight. With equal weights it is scikit-learn's.

    :param scores: (N, C).
    :param targets: (N, C).
    :param weights: (R, N), not negative.
    """
    columns = [_average_precisions(scores[:, c], targets[:, c], weights) for c in range(scores.shape[1])]
    return np.stack(columns, axis=1)


def _average_precisions(
    scores: NDArray[np.float64], targets: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(-scores, kind="stable")
    # Examples of one score are found together.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    w = weights[:, order]
    found = np.cumsum(w, axis=1)[:, last]
    hits = np.cumsum(np.where(targets[order], w, 0.0), axis=1)[:, last]  # (R, thresholds)
    precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
    steps = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((precision * steps).sum(axis=1) / hits[:, -1])

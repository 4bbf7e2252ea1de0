"""How well scores rank what has a label above what has not. Letters: N examples, C labels."""

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

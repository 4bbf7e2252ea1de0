from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from spear_plugin.evaluation import AveragePrecisionStatistic, mean_average_precision, weighted_average_precisions


def naive(scores: np.ndarray, targets: np.ndarray) -> float:
    """The mean of the precision at the rank of each example that has the label, and of that over labels."""
    values = []
    for column in range(scores.shape[1]):
        order = np.argsort(-scores[:, column])
        hits = targets[order, column]
        if hits.any():
            precisions = np.cumsum(hits) / np.arange(1, hits.size + 1)
            values.append(precisions[hits].mean())
    return float(np.mean(values))


def test_it_is_the_mean_of_precisions_at_the_ranks_of_what_has_the_label() -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(40, 6)), generator.random((40, 6)) < 0.2
    targets[:, 3] = False
    assert mean_average_precision(scores, targets) == pytest.approx(naive(scores, targets))


def test_a_perfect_ranking_has_one_and_a_reversed_one_little() -> None:
    targets = np.array([[True], [False], [False], [False]])
    assert mean_average_precision(np.array([[3.0], [2.0], [1.0], [0.0]]), targets) == 1.0
    assert mean_average_precision(np.array([[0.0], [1.0], [2.0], [3.0]]), targets) == pytest.approx(0.25)


def test_it_needs_a_label_and_equal_shapes() -> None:
    with pytest.raises(ValueError, match="at least one label"):
        mean_average_precision(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))
    with pytest.raises(ValueError, match=r"of shape \(2, 2\)"):
        mean_average_precision(np.zeros((2, 2)), np.zeros((2, 3), dtype=bool))


def test_weights_are_those_of_scikit_learn_and_equal_scores_are_found_together() -> None:
    generator = np.random.default_rng(1)
    scores, targets = np.round(generator.normal(size=(50, 3)), 1), generator.random((50, 3)) < 0.3
    weights = generator.integers(4, size=(5, 50)).astype(np.float64)
    expected = [
        [average_precision_score(targets[:, c], scores[:, c], sample_weight=row) for c in range(3)] for row in weights
    ]
    assert weighted_average_precisions(scores, targets, weights) == pytest.approx(np.array(expected))


def test_a_label_without_weight_has_no_precision_and_no_part_in_the_mean() -> None:
    scores, targets = np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([[True, False], [False, True]])
    draws = np.array([[2.0, 0.0]])
    assert np.isnan(weighted_average_precisions(scores, targets, draws)).tolist() == [[False, True]]
    assert AveragePrecisionStatistic(scores, targets).values(draws).tolist() == [1.0]

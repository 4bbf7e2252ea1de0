from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from spear_plugin.evaluation import EqualErrorStatistic, equal_error_rate, statistic_interval


def by_root_of_curve(scores: np.ndarray, targets: np.ndarray) -> float:
    """Where the interpolated receiver operating characteristic crosses 1 - x."""
    false_alarms, hits, _ = roc_curve(targets, scores, drop_intermediate=False)
    curve = interp1d(false_alarms, hits)
    return float(brentq(lambda x: 1 - x - curve(x), 0.0, 1.0))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_where_the_receiver_operating_characteristic_has_equal_errors(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.random(200) < 0.4
    scores = generator.normal(size=200) + targets
    assert equal_error_rate(scores, targets) == pytest.approx(by_root_of_curve(scores, targets), abs=1e-9)


def test_equal_scores_are_accepted_together() -> None:
    generator = np.random.default_rng(5)
    targets = generator.random(300) < 0.5
    scores = np.round(generator.normal(size=300) + targets)
    expected = by_root_of_curve(scores, targets)
    for order in (np.arange(300), np.argsort(targets)):
        assert equal_error_rate(scores[order], targets[order]) == pytest.approx(expected, abs=1e-9)
    assert equal_error_rate(np.zeros(4), [True, True, False, False]) == 0.5


def test_scores_that_separate_have_no_error_and_reversed_ones_nothing_else() -> None:
    targets = np.array([True, True, False, False])
    assert equal_error_rate([4.0, 3.0, 2.0, 1.0], targets) == 0.0
    assert equal_error_rate([1.0, 2.0, 3.0, 4.0], targets) == 1.0


def test_both_kinds_of_trials_are_needed() -> None:
    with pytest.raises(ValueError, match="trials of both kinds"):
        equal_error_rate([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match=r"of shape \(2,\)"):
        equal_error_rate([1.0, 2.0], [True])


def test_a_speaker_that_is_drawn_twice_counts_as_if_its_trials_stood_twice() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(4, size=(2, 60))
    second[:30] = first[:30]
    scores = generator.normal(size=60) + (first == second)
    draws = np.array([[1.0, 2.0, 1.0, 0.0]])
    (value,) = EqualErrorStatistic(scores, first, second).values(draws)
    counts = np.where(first == second, draws[0, first], draws[0, first] * draws[0, second]).astype(int)
    repeated = np.repeat(np.arange(60), counts)
    assert value == pytest.approx(equal_error_rate(scores[repeated], first[repeated] == second[repeated]))


def test_resamples_without_a_kind_of_trials_are_left_out_of_the_interval() -> None:
    # Of two speakers, half of the draws have only one, and so no trial of two.
    scores, first, second = np.array([0.9, 0.8, 0.85, 0.1]), np.array([0, 1, 0, 0]), np.array([0, 1, 1, 1])
    interval = statistic_interval(EqualErrorStatistic(scores, first, second), seed=0, num_resamples=50)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0

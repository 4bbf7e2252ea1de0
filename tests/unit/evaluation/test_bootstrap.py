from __future__ import annotations

import numpy as np
import pytest

from spear_plugin.evaluation import (
    RatioStatistic,
    bootstrap_interval,
    cluster_ratio,
    paired_bootstrap_interval,
    paired_statistic_interval,
    ratio_bootstrap_interval,
    statistic_interval,
)


def test_bootstrap_interval_equals_the_normal_interval_when_clusters_are_single_examples() -> None:
    correct = np.arange(400) % 4 != 0  # accuracy 0.75

    interval = bootstrap_interval(correct, np.arange(400), seed=0)

    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)

    assert interval.value == 0.75

    assert interval.low == pytest.approx(0.75 - half_width, abs=0.006)

    assert interval.high == pytest.approx(0.75 + half_width, abs=0.006)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)

    clusters = np.repeat(np.arange(60), 20)

    covered = 0

    for seed in range(200):
        rate = generator.beta(6, 3, size=60)  # clusters differ, the mean is 2/3

        correct = generator.random(1200) < rate[clusters]

        interval = bootstrap_interval(correct, clusters, seed=seed, num_resamples=400)

        covered += interval.low <= 2 / 3 <= interval.high

    assert 0.90 <= covered / 200 <= 0.985


def test_bootstrap_interval_is_wider_when_examples_of_a_cluster_agree() -> None:
    clusters = np.repeat(np.arange(50), 20)

    correct = clusters % 2 == 0

    together = bootstrap_interval(correct, clusters, seed=0)

    alone = bootstrap_interval(correct, np.arange(1000), seed=0)

    assert (together.high - together.low) > 3 * (alone.high - alone.low)


def test_bootstrap_interval_is_the_same_for_the_same_seed() -> None:
    scores = np.random.default_rng(2).random(300)

    first = bootstrap_interval(scores, np.arange(300) // 3, seed=5)

    assert first == bootstrap_interval(scores, np.arange(300) // 3, seed=5)

    assert first != bootstrap_interval(scores, np.arange(300) // 3, seed=6)


def test_paired_bootstrap_interval_resolves_a_difference_that_single_intervals_hide() -> None:
    generator = np.random.default_rng(3)

    hard = generator.random(500) < 0.5

    worse = ~hard

    better = worse | (generator.random(500) < 0.04)

    clusters = np.arange(500)

    assert bootstrap_interval(better, clusters, seed=0).low < bootstrap_interval(worse, clusters, seed=0).high

    difference = paired_bootstrap_interval(better, worse, clusters, seed=0)

    assert difference.low > 0

    assert difference.excludes_zero


def test_paired_bootstrap_interval_of_equal_systems_rarely_excludes_zero() -> None:
    generator = np.random.default_rng(4)

    clusters = np.arange(600) // 4

    draws = (generator.random((2, 600)) < 0.7 for _ in range(100))

    intervals = [paired_bootstrap_interval(a, b, clusters, seed=0, num_resamples=400) for a, b in draws]

    assert 0 < sum(interval.excludes_zero for interval in intervals) <= 12  # 5 are expected


def test_bootstrap_interval_raises_error_when_there_is_one_cluster() -> None:
    with pytest.raises(ValueError, match=r"at least two clusters, but names 1"):
        bootstrap_interval([True, False], ["a", "a"], seed=0)


def test_ratio_interval_of_words_is_that_of_the_words_as_examples_of_their_utterances() -> None:
    generator = np.random.default_rng(5)
    lengths = generator.integers(1, 12, 80)
    errors = generator.binomial(lengths, 0.3)
    clusters = np.repeat(np.arange(80), lengths)
    wrong = np.concatenate([np.arange(n) < k for n, k in zip(lengths, errors, strict=True)])
    expected = bootstrap_interval(wrong, clusters, seed=2)
    interval = ratio_bootstrap_interval(errors, lengths, seed=2)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.value == pytest.approx(int(errors.sum()) / int(lengths.sum()))


def test_ratio_interval_refuses_empty_references() -> None:
    with pytest.raises(ValueError, match="`denominators` must be positive"):
        ratio_bootstrap_interval([0, 1], [0, 3], seed=0)
    with pytest.raises(ValueError, match="`denominators` must be of shape"):
        ratio_bootstrap_interval([0, 1], [3], seed=0)


def test_a_ratio_of_clusters_has_the_interval_of_its_accuracy_and_of_its_differences() -> None:
    generator = np.random.default_rng(3)

    correct, other = generator.random(120) < 0.7, generator.random(120) < 0.5

    clusters = generator.integers(20, size=120)

    first, second = (cluster_ratio(hits, np.ones(120), clusters) for hits in (correct, other))

    assert statistic_interval(first, seed=1) == bootstrap_interval(correct, clusters, seed=1)

    expected = paired_bootstrap_interval(correct, other, clusters, seed=1)

    assert vars(paired_statistic_interval(first, second, seed=1)) == pytest.approx(vars(expected))


def test_a_ratio_may_have_clusters_of_nothing_but_not_only_those() -> None:
    ratio = RatioStatistic(np.array([1.0, 0.0, 2.0]), np.array([2.0, 0.0, 2.0]))

    assert ratio.values(np.array([[1.0, 1.0, 1.0], [0.0, 3.0, 0.0]])).tolist() == pytest.approx(
        [0.75, np.nan], nan_ok=True
    )

    with pytest.raises(ValueError, match="has no value"):
        statistic_interval(RatioStatistic(np.zeros(2), np.zeros(2)), seed=0)


def test_a_difference_needs_the_same_clusters() -> None:
    first, second = (RatioStatistic(np.ones(size), np.ones(size)) for size in (3, 4))

    with pytest.raises(ValueError, match="must have the 3 clusters"):
        paired_statistic_interval(first, second, seed=0)

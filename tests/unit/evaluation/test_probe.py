from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from spear_plugin.evaluation import (
    ProbeError,
    Split,
    accuracy,
    choose_best,
    choose_probe,
    draw_folds,
    fit_probe,
    fold_splits,
    majority_accuracy,
    subsample,
)
from tests.common import assert_close, assert_equal


def make_clusters(num: int, dim: int, num_classes: int, *, spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussian features, their labels and the class means; the nearest mean is the optimal classifier."""
    generator = torch.Generator().manual_seed(seed)

    means = torch.randn(num_classes, dim, generator=generator)

    labels = torch.randint(num_classes, (num,), generator=generator)

    return means[labels] + spread * torch.randn(num, dim, generator=generator), labels, means


def make_split(num: int) -> Split:
    train, valid, test = torch.arange(num).tensor_split([num // 2, 3 * num // 4])

    return Split([(train, valid)], test)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_fit_probe_equals_scikit_learn_on_standardised_features(l2: float) -> None:
    features, labels, _ = make_clusters(300, 12, 5, spread=2.0, seed=0)

    features = (features * torch.linspace(0.1, 50, 12) + 7).double()

    probe = fit_probe(features, labels, num_classes=5, l2=l2, max_iterations=2000, tolerance=1e-9)

    standardised = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)

    oracle = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-9, max_iter=5000).fit(standardised, labels)

    assert_close(probe.weight, torch.from_numpy(oracle.coef_), atol=1e-5)

    expected = torch.from_numpy(oracle.predict_proba(standardised))

    assert_close(probe.logits(features).softmax(dim=-1), expected, atol=1e-6)


def test_fit_probe_comes_near_the_optimal_classifier() -> None:
    features, labels, means = make_clusters(6000, 20, 8, spread=2.0, seed=1)

    probe = fit_probe(features[:4000], labels[:4000], num_classes=8, l2=1e-3)

    bayes = accuracy(torch.cdist(features[4000:], means).argmin(dim=-1), labels[4000:])

    assert 0.5 < bayes < 0.95

    assert accuracy(probe.predict(features[4000:]), labels[4000:]) > bayes - 0.02


def test_choose_probe_stays_near_chance_when_labels_are_random() -> None:
    generator = torch.Generator().manual_seed(2)

    features, labels = torch.randn(4000, 16, generator=generator), torch.randint(4, (4000,), generator=generator)

    split = make_split(4000)

    choice = choose_probe([features], labels, split, num_classes=4)

    assert accuracy(choice.predictions, labels[split.test]) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 1000))


def test_fit_probe_works_on_half_precision_and_constant_features() -> None:
    features, labels, _ = make_clusters(200, 6, 2, spread=0.1, seed=3)

    features = torch.cat([features, torch.full((200, 1), 1000.0)], dim=-1).half()

    probe = fit_probe(features, labels, num_classes=2, l2=1e-2)

    assert probe.weight.dtype == torch.float32

    assert accuracy(probe.predict(features), labels) == 1.0


def test_fit_probe_works_inside_inference_mode_and_is_deterministic() -> None:
    features, labels, _ = make_clusters(200, 6, 3, spread=1.0, seed=4)

    first = fit_probe(features, labels, num_classes=3, l2=1e-2)

    with torch.inference_mode():
        second = fit_probe(features.clone(), labels.clone(), num_classes=3, l2=1e-2)

    assert_equal(first.weight, second.weight)


def test_fit_probe_gives_weight_to_the_informative_layer() -> None:
    features, labels, _ = make_clusters(600, 8, 4, spread=1.0, seed=5)

    noise = torch.randn(2, 600, 8, generator=torch.Generator().manual_seed(6))

    layers = torch.stack([noise[0], features, noise[1]])  # (L, N, D)

    probe = fit_probe(layers, labels, num_classes=4, l2=1e-3)

    assert_close(probe.layer_weights.sum(), torch.tensor(1.0))

    assert probe.layer_weights.argmax() == 1

    assert probe.layer_weights[1] > 0.6


def test_fit_probe_on_one_layer_equals_the_plain_probe() -> None:
    features, labels, _ = make_clusters(200, 6, 3, spread=1.0, seed=7)

    plain = fit_probe(features, labels, num_classes=3, l2=1e-2)

    stacked = fit_probe(features.unsqueeze(0), labels, num_classes=3, l2=1e-2)

    assert_equal(plain.weight, stacked.weight)

    assert_equal(stacked.layer_weights, torch.ones(1))


def test_choose_probe_picks_the_informative_alternative_by_validation() -> None:
    features, labels, _ = make_clusters(800, 8, 4, spread=1.0, seed=8)

    noise = torch.randn(800, 8, generator=torch.Generator().manual_seed(9))

    choice = choose_probe([noise, features, noise], labels, make_split(800), num_classes=4)

    assert choice.alternative == 1


def test_choose_probe_never_reads_test_labels() -> None:
    features, labels, _ = make_clusters(400, 8, 4, spread=2.0, seed=10)

    split = make_split(400)

    spoilt = labels.clone()

    spoilt[split.test] = -1  # no valid class: reading one would fail or change the result

    choices = [choose_probe([features], y, split, num_classes=4) for y in (labels, spoilt)]

    assert_equal(choices[0].predictions, choices[1].predictions)

    assert choices[0].valid_accuracy == choices[1].valid_accuracy


@pytest.mark.parametrize(("informative", "expected"), [(True, 1e-3), (False, 1e3)])
def test_choose_probe_chooses_the_penalty_by_validation(informative: bool, expected: float) -> None:
    generator = torch.Generator().manual_seed(11)

    labels = (torch.rand(800, generator=generator) < 0.2).long()

    # Without information the best guess is the frequent class, which only a strong penalty makes the probe say.
    features = torch.randn(800, 100, generator=generator) + labels.unsqueeze(-1) * float(informative)

    assert choose_probe([features], labels, make_split(800), num_classes=2, l2_grid=[1e-3, 1e3]).l2 == expected


def test_choose_best_takes_the_first_of_equals() -> None:
    assert choose_best([0.2, 0.7, 0.7, 0.1]) == 1


def test_majority_accuracy_uses_the_most_frequent_training_class() -> None:
    labels = torch.tensor([1, 1, 0, 0, 0, 1, 1, 0])

    split = Split([(torch.tensor([1, 2, 3]), torch.tensor([4]))], torch.tensor([0, 5, 6, 7]))

    assert majority_accuracy(labels, split) == 0.25


def test_fold_splits_tests_every_example_once_and_never_trains_on_it() -> None:
    splits = fold_splits(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 2]))

    assert torch.cat([split.test for split in splits]).sort().values.tolist() == list(range(9))

    for split in splits:
        assert len(split.tuning) == 3

        for train, valid in split.tuning:
            assert torch.cat([train, valid, split.test]).sort().values.tolist() == list(range(9))

        assert torch.cat([valid for _, valid in split.tuning]).sort().values.tolist() == split.fitted.tolist()


def test_fold_splits_raises_error_when_there_are_two_folds() -> None:
    with pytest.raises(ProbeError, match=r"at least 3 folds .* but there are 2"):
        fold_splits(torch.tensor([0, 1, 0, 1]))


def test_draw_folds_spreads_classes_and_keeps_groups_together() -> None:
    groups = torch.arange(60) // 2
    labels = groups % 3

    folds = draw_folds(labels, groups, num_folds=5, seed=1)

    assert_equal(folds[0::2], folds[1::2])
    counts = torch.stack([torch.bincount(folds[labels == label], minlength=5) for label in range(3)])
    assert_equal(counts, torch.full((3, 5), 4))
    assert_equal(folds, draw_folds(labels, groups, num_folds=5, seed=1))
    assert not torch.equal(folds, draw_folds(labels, groups, num_folds=5, seed=2))


def test_draw_folds_raises_error_when_every_class_is_rarer_than_folds() -> None:
    with pytest.raises(ProbeError, match=r"cannot be divided into 5 folds by chance: "):
        draw_folds(torch.tensor([0, 0, 1, 1]), torch.arange(4), num_folds=5, seed=0)


def test_subsample_is_sorted_seeded_and_limited() -> None:
    indices = torch.arange(100, 200)

    sample = subsample(indices, 10, seed=1)

    assert sample.numel() == 10

    assert (sample.diff() > 0).all()

    assert_equal(sample, subsample(indices, 10, seed=1))

    assert not torch.equal(sample, subsample(indices, 10, seed=2))

    assert subsample(indices, None, seed=1) is indices

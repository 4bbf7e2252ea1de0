from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from spear_plugin.evaluation import HeadTraining, LayerHead, Score, accuracy, fit_layer_sum, train_head
from tests.common import assert_close, assert_equal

LAYERS, WIDTH, CLASSES = 3, 8, 4


def make_examples(num: int = 240) -> tuple[Tensor, Tensor]:
    """Return features of which only layer 1 knows the label, far from mean 0, and the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (num,), generator=generator)
    features = torch.randn(LAYERS, num, WIDTH, generator=generator)
    features[1] += 3.0 * torch.nn.functional.one_hot(labels, WIDTH)
    return 100.0 + 5.0 * features, labels


def train(training: HeadTraining, *, seed: int = 0, scores: list[Score] | None = None) -> LayerHead:
    """Train a linear head on the first half, with the second half for validation."""
    x, labels = make_examples()
    examples, valid = torch.arange(labels.numel()).chunk(2)
    layer_sum = fit_layer_sum(x[:, examples])

    def score(head: LayerHead) -> Score:
        value = (accuracy(head(x[:, valid]).argmax(dim=1), labels[valid]),)
        if scores is not None:
            scores.append(value)
        return value

    return train_head(
        lambda: LayerHead(deepcopy(layer_sum), Linear(WIDTH, CLASSES)),
        lambda head, items: cross_entropy(head(x[:, items]), labels[items]),
        score,
        examples,
        training,
        seed=seed,
    )


def validate(head: LayerHead) -> float:
    x, labels = make_examples()
    valid = torch.arange(labels.numel()).chunk(2)[1]
    return accuracy(head(x[:, valid]).argmax(dim=1), labels[valid])


def test_a_head_finds_the_layer_that_knows_the_label() -> None:
    head = train(HeadTraining(learning_rates=[3e-2], max_epochs=40, patience=40))
    assert head.layer_sum.layer_weights.argmax() == 1
    assert head.layer_sum.layer_weights[1] > 0.5
    assert validate(head) > 0.9


def test_layers_are_standardised_by_the_moments_of_the_training_examples() -> None:
    x, _ = make_examples()
    layer_sum = fit_layer_sum(x)
    expected = ((x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True, correction=0)).mean(dim=0)
    assert_close(layer_sum(x), expected, atol=1e-4, rtol=1e-4)
    assert_close(fit_layer_sum(x[:1])(x[:1]).mean(dim=0), torch.zeros(WIDTH), atol=1e-4, rtol=0.0)
    assert_equal(fit_layer_sum(torch.ones(2, 5, 3))(torch.ones(2, 5, 3)), torch.zeros(5, 3))


def test_the_best_epoch_on_validation_is_kept_whatever_the_rate() -> None:
    scores: list[Score] = []
    head = train(HeadTraining(learning_rates=[1e-4, 3e-2], max_epochs=8, patience=8), scores=scores)
    assert len(scores) == 2 * 9
    assert validate(head) == max(scores)[0]
    assert not head.training


def test_training_ends_when_validation_gets_no_better() -> None:
    scores: list[Score] = []
    train(HeadTraining(learning_rates=[1e-9], max_epochs=50, patience=3), scores=scores)
    assert len(scores) == 1 + 3


def test_the_seed_alone_decides_and_the_generator_stays_as_it_is() -> None:
    training = HeadTraining(learning_rates=[1e-2], max_epochs=2)
    state = torch.random.get_rng_state()
    first = train(training, seed=1)
    assert_equal(torch.random.get_rng_state(), state)
    torch.randn(3)
    again, other = train(training, seed=1), train(training, seed=2)
    weights = [[parameter.detach() for parameter in head.parameters()] for head in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][1], weights[2][1])

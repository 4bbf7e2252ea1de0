"""Probes of one source of features on one task.

Letters: A time shifts, L layers, N items, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from recipes.probe.config import ProbeSection
from recipes.probe.results import LayerResult
from recipes.probe.tasks import ProbeTask
from spear_plugin.evaluation import Choice, Interval, bootstrap_interval, choose_best, choose_probe, majority_accuracy


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the probes of a source say about a task."""

    layer: int

    accuracy: float

    low: float

    high: float

    layer_weights: list[float]

    layers: list[LayerResult]

    correct: list[int]


def fit_best_layer(
    features: Tensor, task: ProbeTask, section: ProbeSection, *, seed: int, report: Callable[[], None]
) -> Fit:
    """Fit a probe to each layer; in each split the layer with the best validation accuracy gives the predictions.

    :param features: (A, L, N, D).
    :param report: Called after each layer.
    """
    choices: list[list[Choice]] = []

    for layer in range(features.size(1)):
        choices.append(_choose(list(features[:, layer]), task, section))

        report()

    chosen = [
        choose_best([layer_choices[split].valid_accuracy for layer_choices in choices])
        for split in range(len(task.splits))
    ]

    correct = _correct(task, [choices[layer][split] for split, layer in enumerate(chosen)])

    interval = _interval(correct, task, section, seed)

    return Fit(
        layer=Counter(chosen).most_common(1)[0][0] + 1,
        accuracy=interval.value,
        low=interval.low,
        high=interval.high,
        correct=correct.int().tolist(),
        layer_weights=[],
        layers=[_summarise(number, layer, task, section, seed) for number, layer in enumerate(choices, start=1)],
    )


def fit_weighted_layers(
    features: Tensor, task: ProbeTask, section: ProbeSection, *, seed: int, report: Callable[[], None]
) -> Fit:
    """Fit one probe on a learned weighted sum of the layers.

    :param features: (A, L, N, D).
    """
    choices = _choose(list(features), task, section)

    report()

    summary = _summarise(0, choices, task, section, seed)

    return Fit(
        layer=0,
        accuracy=summary.accuracy,
        low=summary.low,
        high=summary.high,
        correct=_correct(task, choices).int().tolist(),
        layer_weights=torch.stack([choice.layer_weights for choice in choices]).mean(dim=0).tolist(),
        layers=[summary],
    )


def pooled_majority_accuracy(task: ProbeTask) -> float:
    """Return the majority accuracy over the test items of all splits."""
    num_correct = sum(majority_accuracy(task.labels, split) * split.test.numel() for split in task.splits)

    return num_correct / task.test.numel()


def _choose(alternatives: Sequence[Tensor], task: ProbeTask, section: ProbeSection) -> list[Choice]:
    """Return the choice of each split; alternatives are (N, D) or (L, N, D)."""
    return [
        choose_probe(
            alternatives,
            task.labels,
            split,
            num_classes=len(task.classes),
            l2_grid=section.l2_grid,
            max_iterations=section.max_iterations,
        )
        for split in task.splits
    ]


def _correct(task: ProbeTask, choices: Sequence[Choice]) -> Tensor:
    return torch.cat([choice.predictions for choice in choices]) == task.labels[task.test]


def _interval(correct: Tensor, task: ProbeTask, section: ProbeSection, seed: int) -> Interval:
    clusters = task.clip[task.test].numpy()

    return bootstrap_interval(correct.numpy(), clusters, seed=seed, num_resamples=section.num_resamples)


def _summarise(
    number: int, choices: Sequence[Choice], task: ProbeTask, section: ProbeSection, seed: int
) -> LayerResult:
    interval = _interval(_correct(task, choices), task, section, seed)

    return LayerResult(
        layer=number,
        valid_accuracy=sum(choice.valid_accuracy for choice in choices) / len(choices),
        accuracy=interval.value,
        low=interval.low,
        high=interval.high,
        l2=[choice.l2 for choice in choices],
        time_shift=[section.time_shifts[choice.alternative] for choice in choices] if task.is_framewise else [],
    )

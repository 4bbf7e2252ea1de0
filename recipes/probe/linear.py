"""Kinds ``frames`` and ``clips``: logistic regression on single frames, or on mean and deviation of a segment's frames.

Letters: A time shifts, L layers, N items, I items of a file, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

import torch
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import select_items
from recipes.probe.task_files import Item, TaskFile
from recipes.probe.tasks import Features, Fit, LayerResult, ProbeTask, clusters_of, pool_segments
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import (
    Choice,
    ProbeError,
    RatioStatistic,
    choose_best,
    choose_probe,
    cluster_ratio,
    majority_accuracy,
)

_FRAME_MS: Final = 20


@dataclass(frozen=True, kw_only=True)
class LinearTask(ProbeTask, ABC):
    """Items of one label each; the penalty, the time shift and perhaps the layer are chosen on validation."""

    chooses_layers: ClassVar[bool] = True

    labels: Tensor
    """(N,) int64, index of the class."""

    @property
    @override
    def metric(self) -> str:
        return "accuracy"

    @property
    @override
    def chance(self) -> float:
        return pooled_majority_accuracy(self)

    @override
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        assert isinstance(features, Tensor)
        return (fit_weighted_layers if mode == "weighted" else fit_best_layer)(features, self, report=report)

    @abstractmethod
    def time_shifts(self, choices: Sequence[Choice]) -> list[Seconds]:
        """Return those of the chosen features."""


@final
@dataclass(frozen=True, kw_only=True)
class FramesTask(LinearTask):
    """Every 20 ms of aligned audio is an item."""

    kind = "frames"

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        times, num_frames = self.items.start[items], layers.size(1)
        # (L, T, D) -> A x (L, I, D) -> (A, L, I, D)
        shifted = [layers[:, timing.nearest_frames(times + s, num_frames)] for s in self.section.time_shifts]
        return torch.stack(shifted).half()

    @override
    def time_shifts(self, choices: Sequence[Choice]) -> list[Seconds]:
        return [self.section.time_shifts[choice.alternative] for choice in choices]


@final
@dataclass(frozen=True, kw_only=True)
class ClipsTask(LinearTask):
    """Every row is an item; its label belongs to the segment from ``start`` to ``end``."""

    kind = "clips"

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        return pool_segments(layers, self.items, items, timing)

    @override
    def time_shifts(self, choices: Sequence[Choice]) -> list[Seconds]:
        return []


def open_frames_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> FramesTask:
    """Make items of the frames of an alignment, without the labels to be ignored."""
    if file.alignment is None:
        raise ProbeError(
            f"{file.path}: a task of the kind frames must have an alignment, "
            f"{file.path.with_suffix('.alignment.tsv').name}, beside it. Make it with `recipes.corpus.align`."
        )
    frames = [frame for item in file.items for frame in _frames(item, file, set(section.ignored_labels))]
    items = select_items(file, frames, section, name=name, seed=seed)
    return FramesTask(items=items, labels=items.label_indices, section=section, seed=seed)


def open_clips_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> ClipsTask:
    """Make an item of each row."""
    items = select_items(file, file.items, section, name=name, seed=seed)
    return ClipsTask(items=items, labels=items.label_indices, section=section, seed=seed)


def frame_labels(segments: Sequence[tuple[Seconds, Seconds, str]]) -> list[tuple[Seconds, str]]:
    """Return (time, label) for each 20 ms frame whose centre, 10, 30, 50, ... ms, lies in a segment [start, end)."""
    labels = []

    for start, end, label in segments:
        # Whole milliseconds, because centres and ends of segments coincide and must compare exactly.
        first, last = round(1000 * start), round(1000 * end)

        index = -((_FRAME_MS // 2 - first) // _FRAME_MS)  # the first centre at or after the start

        centres = range(max(index, 0) * _FRAME_MS + _FRAME_MS // 2, last, _FRAME_MS)

        labels += [(centre / 1000, label) for centre in centres]

    return labels


def fit_best_layer(features: Tensor, task: LinearTask, *, report: Callable[[], None]) -> Fit:
    """Fit a probe to each layer; in each split the layer with the best validation accuracy gives the predictions.

    :param features: (A, L, N, D).
    :param report: Called after each layer.
    """
    choices: list[list[Choice]] = []

    for layer in range(features.size(1)):
        choices.append(_choose(list(features[:, layer]), task))

        report()

    chosen = [
        choose_best([layer_choices[split].valid_accuracy for layer_choices in choices])
        for split in range(len(task.items.splits))
    ]

    return Fit(
        layer=Counter(chosen).most_common(1)[0][0] + 1,
        statistic=_accuracy(task, [choices[layer][split] for split, layer in enumerate(chosen)]),
        layers=[_summarise(number, layer, task) for number, layer in enumerate(choices, start=1)],
    )


def fit_weighted_layers(features: Tensor, task: LinearTask, *, report: Callable[[], None]) -> Fit:
    """Fit one probe on a learned weighted sum of the layers.

    :param features: (A, L, N, D).
    """
    choices = _choose(list(features), task)

    report()

    return Fit(
        layer=0,
        statistic=_accuracy(task, choices),
        layer_weights=torch.stack([choice.layer_weights for choice in choices]).mean(dim=0).tolist(),
        layers=[_summarise(0, choices, task)],
    )


def pooled_majority_accuracy(task: LinearTask) -> float:
    """Return the majority accuracy over the test items of all splits."""
    num_correct = sum(majority_accuracy(task.labels, split) * split.test.numel() for split in task.items.splits)

    return num_correct / task.items.test.numel()


def _frames(item: Item, file: TaskFile, ignored_labels: set[str]) -> list[Item]:
    assert file.alignment is not None
    segments = [(segment.start, segment.end, segment.phone) for segment in file.alignment.get(item.id, ())]
    return [
        replace(item, start=time, end=time, labels=(phone,))
        for time, phone in frame_labels(segments)
        if phone not in ignored_labels and time < item.clip.duration
    ]


def _choose(alternatives: Sequence[Tensor], task: LinearTask) -> list[Choice]:
    """Return the choice of each split; alternatives are (N, D) or (L, N, D)."""
    return [
        choose_probe(
            alternatives,
            task.labels,
            split,
            num_classes=len(task.items.classes),
            l2_grid=task.section.l2_grid,
            max_iterations=task.section.max_iterations,
        )
        for split in task.items.splits
    ]


def _accuracy(task: LinearTask, choices: Sequence[Choice]) -> RatioStatistic:
    correct = torch.cat([choice.predictions for choice in choices]) == task.labels[task.items.test]
    return cluster_ratio(correct, torch.ones(correct.numel()), clusters_of(task.items, task.items.test))


def _summarise(number: int, choices: Sequence[Choice], task: LinearTask) -> LayerResult:
    interval = task.interval(_accuracy(task, choices))

    return LayerResult(
        layer=number,
        valid_accuracy=sum(choice.valid_accuracy for choice in choices) / len(choices),
        accuracy=interval.value,
        low=interval.low,
        high=interval.high,
        l2=[choice.l2 for choice in choices],
        time_shift=task.time_shifts(choices),
    )

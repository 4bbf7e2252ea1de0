"""Kinds ``utterances`` and ``scenes``: what a whole recording or segment is, from the mean of its frames.

``utterances`` is SUPERB's (arXiv 2105.01051) head for keyword spotting, speaker identification and emotion
recognition, a linear classifier; ``scenes`` is HEAR's (arXiv 2203.03022), a perceptron with a hidden layer, for one
label or several.

Letters: L layers, N items, D width, V classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import select_items
from recipes.probe.task_files import TaskFile
from recipes.probe.tasks import Features, Fit, ProbeTask, clusters_of, pool_segments, stack_pooled
from spear_plugin.evaluation import (
    AveragePrecisionStatistic,
    LayerHead,
    Score,
    Split,
    Statistic,
    accuracy,
    cluster_ratio,
    create_perceptron,
    fit_layer_sum,
    majority_accuracy,
    mean_average_precision,
    train_head,
)


@dataclass(frozen=True, kw_only=True)
class PooledTask(ProbeTask, ABC):
    """Items with labels; in each split a head is trained, with early stopping on its (first) validation part."""

    targets: Tensor
    """(N, V) bool."""

    @property
    def has_one_label(self) -> bool:
        """Whether every item has one label: classes then exclude each other."""
        return bool((self.targets.sum(dim=1) == 1).all())

    @property
    @override
    def metric(self) -> str:
        return "accuracy" if self.has_one_label else "mean_average_precision"

    @property
    @override
    def chance(self) -> float:
        tests = self.targets[self.items.test]
        if not self.has_one_label:
            return tests[:, tests.any(dim=0)].double().mean().item()
        labels = self.targets.int().argmax(dim=1)
        num_correct = sum(majority_accuracy(labels, split) * split.test.numel() for split in self.items.splits)
        return num_correct / tests.size(0)

    @abstractmethod
    def create_head(self, dim: int) -> Module:
        """Return a head from D to V."""

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        return pool_segments(layers, self.items, items, timing, with_deviation=False)

    @override
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        x = stack_pooled(features)
        heads = [self._train(x, split, report) for split in self.items.splits]
        with torch.inference_mode():
            logits = torch.cat([head(x[:, split.test]) for head, split in zip(heads, self.items.splits, strict=True)])
        weights = torch.stack([head.layer_sum.layer_weights for head in heads]).mean(dim=0)
        return Fit(layer=0, statistic=self._measure(logits), layer_weights=weights.tolist())

    @override
    def num_reports(self, num_layers: int, mode: str) -> int:
        return self.section.head.max_epochs * len(self.section.head.learning_rates) * len(self.items.splits)

    def _train(self, x: Tensor, split: Split, report: Callable[[], None]) -> LayerHead:
        train, valid = split.tuning[0]
        layer_sum = fit_layer_sum(x[:, train])
        targets = self.targets.int().argmax(dim=1) if self.has_one_label else self.targets.float()

        def loss(logits: Tensor, items: Tensor) -> Tensor:
            if self.has_one_label:
                return cross_entropy(logits, targets[items])
            return binary_cross_entropy_with_logits(logits, targets[items])

        def score(head: LayerHead) -> Score:
            logits = head(x[:, valid])
            return self._score(logits, valid), -loss(logits, valid).item()

        return train_head(
            lambda: LayerHead(deepcopy(layer_sum), self.create_head(x.size(-1))),
            lambda head, items: loss(head(x[:, items]), items),
            score,
            train,
            self.section.head.training(),
            seed=self.seed,
            check_stop=report,
        )

    def _score(self, logits: Tensor, items: Tensor) -> float:
        targets = self.targets[items]
        if self.has_one_label:
            return accuracy(logits.argmax(dim=1), targets.int().argmax(dim=1))
        return mean_average_precision(logits.double().numpy(), targets.numpy()) if targets.any() else 0.0

    def _measure(self, logits: Tensor) -> Statistic:
        """Return the measure of the test items' logits, (N, V)."""
        targets = self.targets[self.items.test]
        if not self.has_one_label:
            return AveragePrecisionStatistic(logits.double().numpy(), targets.numpy())
        correct = logits.argmax(dim=1) == targets.int().argmax(dim=1)
        return cluster_ratio(correct, torch.ones(correct.numel()), clusters_of(self.items, self.items.test))


@final
@dataclass(frozen=True, kw_only=True)
class UtterancesTask(PooledTask):
    """A linear head, for one label."""

    kind = "utterances"

    @override
    def create_head(self, dim: int) -> Module:
        return Linear(dim, self.targets.size(1))


@final
@dataclass(frozen=True, kw_only=True)
class ScenesTask(PooledTask):
    """A perceptron, for one label (accuracy) or several (mean average precision)."""

    kind = "scenes"

    @override
    def create_head(self, dim: int) -> Module:
        return create_perceptron(dim, self.section.head.hidden_dim, self.targets.size(1))


def open_utterances_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> UtterancesTask:
    """Make an item of each row."""
    items = select_items(file, file.items, section, name=name, seed=seed)
    targets = torch.nn.functional.one_hot(items.label_indices, len(items.classes)).bool()
    return UtterancesTask(items=items, targets=targets, section=section, seed=seed)


def open_scenes_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> ScenesTask:
    """Make an item of each row; several labels are separated by ``|``."""
    split = [replace(item, labels=tuple(filter(None, item.labels[0].split("|")))) for item in file.items]
    items = select_items(file, split, section, name=name, seed=seed)
    targets = torch.tensor([[label in item.labels for label in items.classes] for item in items.items])
    return ScenesTask(items=items, targets=targets, section=section, seed=seed)

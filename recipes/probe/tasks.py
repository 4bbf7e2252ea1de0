"""What a kind of probe is: how it describes items by features, and what head it fits to them.

Letters: A time shifts, L layers, N items of a task, I items of a file, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias, final

import torch
from torch import Tensor

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import TaskItems
from spear_plugin.evaluation import Interval, Statistic, statistic_interval

Features: TypeAlias = Tensor | list[Tensor]
"""Of N items: (A, L, N, D), or N sequences of (L, T, D)."""


@final
@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """A probe on one layer; with folds, means over the folds for validation, pooled predictions for the test."""

    layer: int
    """Counted from 1; 0 is the learned sum of all layers."""

    valid_accuracy: float

    accuracy: float

    low: float

    high: float

    l2: list[float]
    """Chosen in each split."""

    time_shift: list[float]
    """Chosen in each split, in seconds."""


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the probes of a source say about a task."""

    layer: int
    """Chosen on validation (most often, with folds); 0 for the learned sum."""

    statistic: Statistic
    """The measure on the test items."""

    layer_weights: list[float] = field(default_factory=list)
    """Of the learned sum; empty otherwise."""

    layers: list[LayerResult] = field(default_factory=list)

    measures: dict[str, float] = field(default_factory=dict)
    """Further measures."""


@dataclass(frozen=True, kw_only=True)
class ProbeTask(ABC):
    """Items and a head for them. A new kind is a subclass and a line in :mod:`recipes.probe.kinds`."""

    kind: ClassVar[str]
    """What configurations and task files call it."""

    is_error: ClassVar[bool] = False
    """Whether less of the measure is better."""

    chooses_layers: ClassVar[bool] = False
    """Whether it can fit a probe to each layer; the others always read the learned sum."""

    items: TaskItems

    section: ProbeSection

    seed: int

    @property
    def name(self) -> str:
        """Of the task."""
        return self.items.name

    @property
    @abstractmethod
    def metric(self) -> str:
        """What is measured, such as accuracy; in [0, 1] for most."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The measure without looking at features, as of always naming the most frequent class."""

    @abstractmethod
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        """Return the features of the items (I,) of a file from its frames (L, T, D).

        Either (A, L, I, D), or I sequences of (L, T, D).
        """

    @abstractmethod
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        """Choose and fit heads on training and validation items, and measure them on the test items.

        :param mode: ``best`` or ``weighted``, see the configuration.
        :param report: Called now and then; may raise to stop.
        """

    def num_reports(self, num_layers: int, mode: str) -> int:
        """Return about how often :meth:`fit` will report, for a progress bar."""
        return num_layers if self.chooses_layers and mode == "best" else 1

    def interval(self, statistic: Statistic) -> Interval:
        """Return a measure with its bootstrap interval."""
        return statistic_interval(statistic, seed=self.seed, num_resamples=self.section.num_resamples)


def pool_segments(
    layers: Tensor, items: TaskItems, selected: Tensor, timing: FrameTiming, *, with_deviation: bool = True
) -> Tensor:
    """Return the mean and, if asked for, the standard deviation of the frames of segments, (1, L, I, D or 2D)."""
    pooled = []
    for frames in cut_segments(layers, items, selected, timing):
        # (L, T, D) -> (L, D)
        std, mean = torch.std_mean(frames, dim=1, correction=0)
        pooled.append(torch.cat([mean, std], dim=-1) if with_deviation else mean)

    return torch.stack(pooled, dim=1).unsqueeze(0)


def cut_segments(layers: Tensor, items: TaskItems, selected: Tensor, timing: FrameTiming) -> list[Tensor]:
    """Return the frames, (L, T, D), of segments: those whose centres lie in them, at least one."""
    num_frames = layers.size(1)
    first = timing.nearest_frames(items.start[selected] + 0.5 / timing.rate_hz, num_frames).tolist()
    last = timing.nearest_frames(items.end[selected] - 0.5 / timing.rate_hz, num_frames).tolist()
    return [layers[:, begin : max(begin, end) + 1] for begin, end in zip(first, last, strict=True)]


def stack_pooled(features: Features) -> Tensor:
    """Return pooled features, (1, L, N, D), as (L, N, D)."""
    assert isinstance(features, Tensor)  # of kinds that pool
    return features.squeeze(0)


def clusters_of(items: TaskItems, selected: Sequence[int] | Tensor) -> list[int]:
    """Return the file of each of some items: what is resampled."""
    return [int(clip) for clip in items.clip[torch.as_tensor(selected)]]

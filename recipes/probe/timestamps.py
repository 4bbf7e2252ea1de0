"""Kind ``timestamps``: which sounds are heard when, HEAR's (arXiv 2203.03022) perceptron on single frames.

``NAME.alignment.tsv`` beside ``NAME.tsv`` lists the events of each recording, which may overlap; the column ``phone``
is their class. Frames are those nearest to 10, 30, 50, ... ms, so that targets are the same for all sources.

Letters: L layers, T frames, F frames of several recordings, D width, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import select_items
from recipes.probe.task_files import TaskFile
from recipes.probe.tasks import Features, Fit, ProbeTask, clusters_of
from spear_plugin.evaluation import (
    DetectionCounts,
    Event,
    LayerHead,
    ProbeError,
    Score,
    Split,
    cluster_ratio,
    count_onsets,
    count_segments,
    create_perceptron,
    find_events,
    fit_layer_sum,
    train_head,
)

_FRAME_SECONDS: Final = 0.02


@final
@dataclass(frozen=True)
class _PostProcessing:
    """From probabilities to events."""

    threshold: float
    median_frames: int

    def find(self, probabilities: Tensor) -> list[Event]:
        """Return the events in (T, V)."""
        active: NDArray[np.bool_] = (probabilities > self.threshold).numpy()
        return find_events(active, frame_seconds=_FRAME_SECONDS, median_frames=self.median_frames)


@final
@dataclass(frozen=True, kw_only=True)
class TimestampsTask(ProbeTask):
    """Recordings with events."""

    kind = "timestamps"

    events: list[list[Event]]
    """Of each item."""

    @property
    @override
    def metric(self) -> str:
        return "onset_f_measure"

    @property
    @override
    def chance(self) -> float:
        return 0.0  # of finding nothing

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        return [layers[:, timing.nearest_frames(self._times(item), layers.size(1))].half() for item in items.tolist()]

    @override
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        assert isinstance(features, list)
        onsets: list[DetectionCounts] = []
        segments, weights = DetectionCounts(), []
        for split in self.items.splits:
            head = self._train(features, split, report)
            processing = self._choose_processing(head, features, split.tuning[0][1].tolist())
            for item in split.test.tolist():
                found = processing.find(_probabilities(head, features[item]))
                onsets.append(self._count_onsets(item, found))
                segments += self._count_segments(item, found)
            weights.append(head.layer_sum.layer_weights)
        numerators, denominators = zip(*((c.numerator, c.denominator) for c in onsets), strict=True)
        return Fit(
            layer=0,
            statistic=cluster_ratio(numerators, denominators, clusters_of(self.items, self.items.test)),
            layer_weights=torch.stack(weights).mean(dim=0).tolist(),
            measures={"segment_f_measure": segments.f_measure},
        )

    @override
    def num_reports(self, num_layers: int, mode: str) -> int:
        return self.section.head.max_epochs * len(self.section.head.learning_rates) * len(self.items.splits)

    def _times(self, item: int) -> Tensor:
        """Return the centres of the item's frames, (T,)."""
        start, end = self.items.items[item].start, self.items.items[item].end
        num_frames = max(1, round((end - start) / _FRAME_SECONDS))
        return start + _FRAME_SECONDS * (torch.arange(num_frames, dtype=torch.float64) + 0.5)

    def _targets(self, items: Sequence[int]) -> Tensor:
        """Return which classes are heard at the centres of the frames of items, (F, V) float32."""
        return torch.cat([self._targets_of(item) for item in items])

    def _targets_of(self, item: int) -> Tensor:
        times = self._times(item) - self.items.items[item].start
        targets = torch.zeros(times.numel(), len(self.items.classes))
        for event in self.events[item]:
            targets[(times >= event.start) & (times < event.end), event.label] = 1.0
        return targets

    def _train(self, features: list[Tensor], split: Split, report: Callable[[], None]) -> LayerHead:
        train, valid = (part.tolist() for part in split.tuning[0])
        x, valid_x = (torch.cat([features[item] for item in part], dim=1) for part in (train, valid))  # (L, F, D)
        targets, valid_targets = self._targets(train), self._targets(valid)
        layer_sum = fit_layer_sum(x)

        def score(head: LayerHead) -> Score:
            return (-binary_cross_entropy_with_logits(head(valid_x), valid_targets).item(),)

        return train_head(
            lambda: LayerHead(
                deepcopy(layer_sum),
                create_perceptron(x.size(-1), self.section.head.hidden_dim, len(self.items.classes)),
            ),
            lambda head, frames: binary_cross_entropy_with_logits(head(x[:, frames]), targets[frames]),
            score,
            torch.arange(x.size(1)),
            self.section.head.training(self.section.head.num_batch_frames),
            seed=self.seed,
            check_stop=report,
        )

    def _choose_processing(self, head: LayerHead, features: list[Tensor], valid: list[int]) -> _PostProcessing:
        """Return what gives the best F-measure of onsets on validation, the first of equals."""
        probabilities = {item: _probabilities(head, features[item]) for item in valid}
        widths = [2 * round(seconds / _FRAME_SECONDS / 2) + 1 for seconds in self.section.head.median_seconds]
        candidates = [_PostProcessing(t, w) for t, w in product(self.section.head.thresholds, widths)]

        def measure(candidate: _PostProcessing) -> float:
            counts = (self._count_onsets(item, candidate.find(p)) for item, p in probabilities.items())
            return sum(counts, DetectionCounts()).f_measure

        return max(candidates, key=measure)

    def _count_onsets(self, item: int, found: Sequence[Event]) -> DetectionCounts:
        return count_onsets(self.events[item], found, tolerance=self.section.head.onset_tolerance)

    def _count_segments(self, item: int, found: Sequence[Event]) -> DetectionCounts:
        duration = self.items.items[item].end - self.items.items[item].start
        length = self.section.head.segment_seconds
        return count_segments(self.events[item], found, duration=duration, segment_seconds=length)


def open_timestamps_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> TimestampsTask:
    """Make an item of each row."""
    if file.alignment is None:
        raise ProbeError(
            f"{file.path}: a task of the kind timestamps must have its events in "
            f"{file.path.with_suffix('.alignment.tsv').name}. Make both with `recipes.corpus.soundscapes`."
        )
    segments = {item.id: file.alignment.get(item.id, ()) for item in file.items}
    heard = [replace(item, labels=tuple(segment.phone for segment in segments[item.id])) for item in file.items]
    items = select_items(file, heard, section, name=name, seed=seed, also=segments)
    index = {label: number for number, label in enumerate(items.classes)}
    events = [
        [Event(s.start - item.start, s.end - item.start, index[s.phone]) for s in segments[item.id]]
        for item in items.items
    ]
    return TimestampsTask(items=items, events=events, section=section, seed=seed)


@torch.no_grad()
def _probabilities(head: LayerHead, features: Tensor) -> Tensor:
    """Return (T, V) of (L, T, D)."""
    probabilities: Tensor = head(features).sigmoid()
    return probabilities

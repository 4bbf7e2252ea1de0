"""How fast the teacher follows the student (SpidR, section 3.2; DinoSR)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import override


class DecayCurve(ABC):
    """The share of itself that the teacher keeps in an update."""

    @abstractmethod
    def at(self, step: int) -> float:
        """Return the decay after ``step`` updates of the student, the first one being 1; 1 for no update at all."""


@final
@dataclass(frozen=True)
class ExponentialDecay(DecayCurve):
    """Approaches 1 exponentially, as SpidR's does."""

    start: float
    timescale: float

    threshold: float
    """The distance to 1 from which on the decay is 1."""

    @override
    def at(self, step: int) -> float:
        distance = (1.0 - self.start) * math.exp(-step / self.timescale)
        return 1.0 if distance <= self.threshold else 1.0 - distance


@final
@dataclass(frozen=True)
class LinearDecay(DecayCurve):
    """Rises to a value, which it keeps until the teacher stays as it is, as DinoSR's does."""

    start: float
    final: float
    final_step: int

    last_step: int
    """The number of updates from which on the decay is 1."""

    @override
    def at(self, step: int) -> float:
        if step >= self.last_step:
            return 1.0
        return self.start + (self.final - self.start) * min(step / self.final_step, 1.0)


@final
class EmaUpdater:
    """Moves a teacher towards a student of the same structure."""

    def __init__(self, curve: DecayCurve, copied_parts: Sequence[str]) -> None:
        """Create an updater; parameters whose names begin with ``copied_parts`` are copied as they are."""
        self.curve = curve
        self.copied_parts = tuple(copied_parts)

    @torch.no_grad()
    def update(self, teacher: Module, student: Module, step: int) -> None:
        """Update ``teacher`` after ``step`` updates of ``student``, in a handful of kernels."""
        decay = self.curve.at(step)
        if decay >= 1.0:
            return
        moved: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for (name, ours), theirs in zip(teacher.named_parameters(), student.parameters(), strict=True):
            pairs = copied if name.startswith(self.copied_parts) else moved
            pairs.append((ours.detach(), theirs.detach()))
        for pairs, weight in ((moved, 1.0 - decay), (copied, 1.0)):
            if pairs:
                # With a weight of 1 exactly the student's values; sharded parameters know no grouped copy.
                torch._foreach_lerp_([ours for ours, _ in pairs], [theirs for _, theirs in pairs], weight)

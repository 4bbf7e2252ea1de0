"""How fast the teacher follows the student (SpidR, section 3.2; DinoSR)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
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
        pairs = list(zip(teacher.named_parameters(), student.parameters(), strict=True))
        copied = [name.startswith(self.copied_parts) for (name, _), _ in pairs]
        teachers = [p.detach() for (_, p), _ in pairs]
        students = [p.detach() for _, p in pairs]
        moved = [i for i, is_copied in enumerate(copied) if not is_copied]
        kept = [i for i, is_copied in enumerate(copied) if is_copied]
        torch._foreach_lerp_([teachers[i] for i in moved], [students[i] for i in moved], 1.0 - decay)
        if kept:
            torch._foreach_copy_([teachers[i] for i in kept], [students[i] for i in kept])

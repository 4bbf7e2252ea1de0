"""Values that change in the course of training, such as dropout rates (Zipformer, section 3.5; "ScheduledFloat").

The *batch count* tells how far training is, in batches of a standard amount of audio rather than in steps, so that one
schedule suits any batch size. It lives on the host: reading a rate must never wait for the device.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch.nn import Module
from typing_extensions import override


class Schedule(Module):
    """A piecewise linear function of the batch count, constant before its first and behind its last point.

    It is a module only so that it knows whether the model trains, and can be found in it; it has no state of its own.
    """

    batch_count: float | None
    """How far training is; None as long as nobody has said so. Written by :func:`set_batch_count`."""

    def __init__(self, *points: tuple[float, float], default: float = 0.0) -> None:
        """Create a schedule.

        :param points: The pairs (batch count, value), at least one, in rising order of the batch count.
        :param default: The value in evaluation, and where the batch count is not known.

        :raises ValueError: If the points are not in rising order.
        """
        super().__init__()

        self.counts = [count for count, _ in points]
        self.values = [value for _, value in points]

        if not points or any(b <= a for a, b in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError(f"`points` must be in rising order of the batch count, but are {points} instead.")

        self.default = default
        self.batch_count = None

    @property
    def value(self) -> float:
        """The value now."""
        if not self.training or self.batch_count is None:
            return self.default

        return self.at(self.batch_count)

    def at(self, batch_count: float) -> float:
        """Return the value at a batch count."""
        right = bisect_right(self.counts, batch_count)

        if right == 0 or right == len(self.counts):
            return self.values[max(right - 1, 0)]

        share = (batch_count - self.counts[right - 1]) / (self.counts[right] - self.counts[right - 1])

        return self.values[right - 1] + share * (self.values[right] - self.values[right - 1])

    @override
    def extra_repr(self) -> str:
        points = ", ".join(f"({count:g}, {value:g})" for count, value in zip(self.counts, self.values, strict=True))

        return f"{points}, default={self.default:g}"


def constant(value: float) -> Schedule:
    """Return a schedule that always has the same value, in evaluation too."""
    return Schedule((0.0, value), default=value)


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a schedule that is given, or a constant one for a number."""
    return value if isinstance(value, Schedule) else constant(value)


def set_batch_count(model: Module, batch_count: float | None) -> None:
    """Tell every schedule in ``model`` how far training is; None brings back their default values."""
    for module in model.modules():
        if isinstance(module, Schedule):
            module.batch_count = batch_count


def draw_uniform() -> float:
    """Return a random number in [0, 1) on the host, from torch's generator of the CPU, which checkpoints save."""
    return torch.rand((), device="cpu").item()

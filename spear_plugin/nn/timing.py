"""When the frames of a feature sequence are. Letters: T frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class FrameTiming:
    """When the frames of a feature sequence are."""

    rate_hz: float

    first_centre: float
    """Centre of frame 0, in seconds."""

    def centres(self, num_frames: int) -> Tensor:
        """Return the centres (T,) float64 of the first frames, in seconds, on the host."""
        return self.first_centre + torch.arange(num_frames, dtype=torch.float64, device="cpu") / self.rate_hz

    def nearest_frames(self, times: Tensor, num_frames: int) -> Tensor:
        """Return the index of the frame whose centre is nearest to each time, within [0, num_frames)."""
        return ((times - self.first_centre) * self.rate_hz).round().long().clamp(0, num_frames - 1)

    def frames_between(self, starts: Tensor, ends: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return the first and the last index of the frames whose centres lie in each of the segments [start, end].

        A segment between two centres, or beyond the frames there are, gets the frame that is nearest to its middle.
        """
        # Centres and ends of segments are decimal fractions that coincide, and must compare as equal.
        first = ((starts - self.first_centre) * self.rate_hz - 1e-6).ceil().long().clamp(min=0)
        last = ((ends - self.first_centre) * self.rate_hz + 1e-6).floor().long().clamp(max=num_frames - 1)

        nearest = self.nearest_frames(0.5 * (starts + ends), num_frames)
        is_empty = first > last

        return torch.where(is_empty, nearest, first), torch.where(is_empty, nearest, last)

"""Statistics of frames. Letters: F frames, D width."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_CHUNK_SIZE: Final = 8192


def compute_statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (D), float32, of frames (F, D), summed in float64."""
    chunks = torch.split(frames, _CHUNK_SIZE)
    mean = torch.stack([c.sum(dim=0, dtype=torch.float64) for c in chunks]).sum(dim=0) / len(frames)
    variance = torch.stack([(c - mean).square().sum(dim=0) for c in chunks]).sum(dim=0) / len(frames)
    return mean.float(), variance.sqrt().float()

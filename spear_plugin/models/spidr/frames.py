"""Which frames of a batch are valid, and which are wanted. Letters: N batch, T frames, D width, M wanted frames."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

INSTANCE_NORM_EPSILON: Final = 1e-5


def is_on_host(lengths: Tensor) -> bool:
    """Return whether ``lengths`` can be looked at without waiting for a device, and not only when a graph is traced."""
    return lengths.device.type == "cpu" and not torch.compiler.is_compiling()


def locate_frames(frame_lengths: Tensor, num_frames: int) -> Tensor | None:
    """Return (N, T) bool, True on valid frames; None if ``frame_lengths`` (N,) are on the host and all T are valid."""
    if is_on_host(frame_lengths) and bool((frame_lengths >= num_frames).all()):
        return None
    return torch.arange(num_frames, device=frame_lengths.device) < frame_lengths[:, None]


def find_frames(is_wanted: Tensor | None, frames: Tensor) -> Tensor:
    """Return the indices (M,) of wanted frames among all N * T, by default of all; waits only for their device."""
    if is_wanted is None:
        return torch.arange(frames.size(0) * frames.size(1), device=frames.device)
    return is_wanted.flatten().nonzero().squeeze(1).to(frames.device, non_blocking=True)


def normalize_over_time(frames: Tensor, indices: Tensor) -> Tensor:
    """Return those of the ``frames`` (N, T, D) at ``indices`` (M,) as float32, normalized by channel over all T."""
    rows = indices // frames.size(1)
    variances, means = torch.var_mean(frames.float(), dim=1, correction=0)
    selected = frames.flatten(0, 1)[indices].float() - means[rows]
    return selected * torch.rsqrt(variances + INSTANCE_NORM_EPSILON)[rows]


def check_num_samples(name: str, num_samples: int, minimum: int) -> None:
    """Raise :class:`ValueError` if an utterance has no frame."""
    if num_samples < minimum:
        raise ValueError(f"`{name}` must have at least {minimum} samples, one frame, but have {num_samples} instead.")


def check_mask(mask: Tensor, frames: Tensor) -> None:
    """Raise :class:`ValueError` if ``mask`` does not have one value for each of the ``frames`` (N, T, D)."""
    if mask.shape != frames.shape[:2]:
        raise ValueError(
            f"`mask` must be of shape {tuple(frames.shape[:2])}, one value for each frame, but has the shape "
            f"{tuple(mask.shape)} instead."
        )

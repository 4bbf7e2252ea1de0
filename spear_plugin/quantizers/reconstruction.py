"""Which part of the variance of frames their codes leave unexplained, in the scale of the codebooks.

Letters: F frames, B frames of a chunk, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding

from spear_plugin.quantizers.base import FrameQuantizer
from spear_plugin.quantizers.model import MultiCodebookQuantizer

_CHUNK_SIZE: Final = 4096


def relative_error(quantizer: FrameQuantizer, frames: Tensor) -> float:
    """Return the squared error of the decoded frames (F, D) over their squared distance from the mean."""
    return _relative_error(quantizer, frames, quantizer.encode)


def relative_errors_by_num_refinements(
    quantizer: MultiCodebookQuantizer, frames: Tensor, *, max_num_refinements: int = 5
) -> list[float]:
    """Return :func:`relative_error` for 0, 1, ... ``max_num_refinements`` refinements."""
    return [
        _relative_error(quantizer, frames, partial(quantizer.encode, num_refinements=n))
        for n in range(max_num_refinements + 1)
    ]


@torch.no_grad()
def relative_errors_by_num_codebooks(quantizer: FrameQuantizer, frames: Tensor) -> list[float]:
    """Return the relative errors if only the first 0, 1, ... N codebooks are decoded.

    Those left out contribute their mean over the frames: the first number is near 1, the last is
    :func:`relative_error`.
    """
    entries = quantizer.entries()
    codes = torch.cat([quantizer.encode(x) for x in _chunks(quantizer, frames)]).long()
    usage = codes.new_zeros(entries.shape[:2]).scatter_add_(1, codes.T, torch.ones_like(codes.T))
    # (N, 1, K), (N, K, D) -> (N, 1, D)
    means = (usage / len(codes))[:, None] @ entries
    deviations = (entries - means).flatten(0, 1)
    rows = codes + torch.arange(quantizer.num_codebooks, device=codes.device) * quantizer.codebook_size
    errors = torch.zeros(quantizer.num_codebooks + 1, dtype=torch.float64, device=codes.device)
    for x, chunk in zip(_chunks(quantizer, frames), torch.split(rows, _CHUNK_SIZE), strict=True):
        start = quantizer.standardize(x)[:, None] - means.sum(dim=0)
        # (B, 1, D), (B, N, D) -> (B, N + 1, D)
        residuals = torch.cat([start, -embedding(chunk, deviations)], dim=1).cumsum(dim=1)
        errors += residuals.square().sum(dim=(0, 2), dtype=torch.float64)
    variance = _variance(quantizer, frames)
    return [float(error) / variance for error in errors]


@torch.no_grad()
def _relative_error(quantizer: FrameQuantizer, frames: Tensor, encode: Callable[[Tensor], Tensor]) -> float:
    error = 0.0
    for x in _chunks(quantizer, frames):
        decoded = quantizer.decode(encode(x))
        error += float((quantizer.standardize(x) - quantizer.standardize(decoded)).square().sum())
    return error / _variance(quantizer, frames)


def _chunks(quantizer: FrameQuantizer, frames: Tensor) -> Iterator[Tensor]:
    for chunk in torch.split(frames, _CHUNK_SIZE):
        yield chunk.to(quantizer.device)


def _variance(quantizer: FrameQuantizer, frames: Tensor) -> float:
    """Return the squared distance of standardized frames (F, D) from their mean, summed over the frames."""
    sums = [quantizer.standardize(x).sum(dim=0, dtype=torch.float64) for x in _chunks(quantizer, frames)]
    mean = torch.stack(sums).sum(dim=0) / len(frames)
    return sum(float((quantizer.standardize(x) - mean).square().sum()) for x in _chunks(quantizer, frames))

"""How much of the variance of frames their codes leave unexplained, in the scale in which the codebooks work.

Letters: F frames, B frames of a chunk, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from spear_plugin.quantizers.model import MultiCodebookQuantizer

_CHUNK_SIZE: Final = 1024


def relative_error(quantizer: MultiCodebookQuantizer, frames: Tensor, *, num_refinements: int = 5) -> float:
    """Return the squared error of the decoded codes of frames (F, D) over the squared distances from the frames' mean."""
    return _relative_error(quantizer, frames, num_refinements, _variance(quantizer, frames))


def relative_errors_by_num_refinements(
    quantizer: MultiCodebookQuantizer, frames: Tensor, *, max_num_refinements: int = 5
) -> list[float]:
    """Return :func:`relative_error` after 0, 1, ... ``max_num_refinements`` refinements."""
    variance = _variance(quantizer, frames)

    return [_relative_error(quantizer, frames, n, variance) for n in range(max_num_refinements + 1)]


@torch.no_grad()
def relative_errors_by_num_codebooks(
    quantizer: MultiCodebookQuantizer, frames: Tensor, *, num_refinements: int = 5
) -> list[float]:
    """Return the relative error if only the first 0, 1, ... N codebooks are decoded.

    The others contribute their mean over the frames, so the first number is about 1 and the last is
    :func:`relative_error`.
    """
    entries = quantizer.entries()

    codes = quantizer.encode(frames.to(entries.device), num_refinements).long()

    usage = codes.new_zeros(entries.shape[:2]).scatter_add_(1, codes.T, torch.ones_like(codes.T))

    means = (usage / len(codes))[:, None] @ entries
    # (N, 1, D)

    deviations = (entries - means).flatten(0, 1)

    first_entries = torch.arange(quantizer.num_codebooks, device=codes.device) * quantizer.codebook_size

    errors = torch.zeros(quantizer.num_codebooks + 1, dtype=torch.float64, device=codes.device)

    for x, chunk in zip(_chunks(quantizer, frames), codes.split(_CHUNK_SIZE), strict=True):
        parts = functional.embedding(chunk + first_entries, deviations)
        # (B, N, D)

        residuals = torch.cat([x[:, None] - means.sum(dim=0), -parts], dim=1).cumsum(dim=1)
        # (B, N + 1, D)

        errors += residuals.square().sum(dim=(0, 2), dtype=torch.float64)

    return [float(error) for error in errors / _variance(quantizer, frames)]


def _chunks(quantizer: MultiCodebookQuantizer, frames: Tensor) -> Iterator[Tensor]:
    for chunk in frames.split(_CHUNK_SIZE):
        yield quantizer.standardize(chunk.to(quantizer.centers.device))


def _variance(quantizer: MultiCodebookQuantizer, frames: Tensor) -> float:
    """Return the sum over frames and channels of the squared distance from the mean."""
    sums = [x.sum(dim=0, dtype=torch.float64) for x in _chunks(quantizer, frames)]

    mean = torch.stack(sums).sum(dim=0) / len(frames)

    return sum(float((x - mean).square().sum()) for x in _chunks(quantizer, frames))


@torch.no_grad()
def _relative_error(quantizer: MultiCodebookQuantizer, frames: Tensor, num_refinements: int, variance: float) -> float:
    error = 0.0

    for chunk in frames.split(_CHUNK_SIZE):
        chunk = chunk.to(quantizer.centers.device)

        decoded = quantizer.decode(quantizer.encode(chunk, num_refinements))

        error += float((quantizer.standardize(chunk) - quantizer.standardize(decoded)).square().sum())

    return error / variance

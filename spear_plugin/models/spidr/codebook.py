"""Clusters of the teacher's frames that follow it in the course of training (SpidR, section 3.2, after DinoSR).

Letters: K codebooks, V codes of each, M frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import layer_norm


@final
@dataclass(frozen=True)
class CodebookStatistics:
    """How many frames of a batch each code got, and their sums.

    Both lie in one tensor, so that a single collective adds up those of all processes. Statistics of several batches
    are added up with :meth:`add_`.
    """

    packed: Tensor
    """(K * V * (1 + D),) float32, on the device of the frames."""

    shape: tuple[int, int, int]
    """K, V and D."""

    @staticmethod
    def of(frames: Tensor, labels: Tensor, num_codes: int) -> CodebookStatistics:
        """Count and sum up frames.

        Args:
            frames: (K, M, D) float32.
            labels: (K, M) int64, the code of each.
            num_codes: V.
        """
        num_codebooks, num_frames, dim = frames.shape
        packed = frames.new_zeros(num_codebooks * num_codes * (1 + dim))
        statistics = CodebookStatistics(packed, (num_codebooks, num_codes, dim))
        # (K, M) -> (K * M), numbered through all codebooks
        offsets = num_codes * torch.arange(num_codebooks, device=labels.device)
        indices = (labels + offsets[:, None]).flatten()
        # Integers add up to the same in any order.
        statistics.counts.view(-1).index_add_(0, indices, frames.new_ones(num_codebooks * num_frames))
        if frames.is_cuda:
            statistics.sums.copy_(sum_by_product(frames, labels, num_codes))
        else:
            statistics.sums.view(-1, dim).index_add_(0, indices, frames.flatten(0, 1))
        return statistics

    @property
    def counts(self) -> Tensor:
        """(K, V) float32, the number of frames of each code; integers, exact up to 2^24."""
        num_codebooks, num_codes, _ = self.shape
        return self.packed[: num_codebooks * num_codes].view(num_codebooks, num_codes)

    @property
    def sums(self) -> Tensor:
        """(K, V, D) float32, the sum of the frames of each code."""
        num_codebooks, num_codes, _ = self.shape
        return self.packed[num_codebooks * num_codes :].view(self.shape)

    def add_(self, other: CodebookStatistics) -> None:
        """Add the statistics of another batch."""
        self.packed.add_(other.packed)


def sum_by_product(frames: Tensor, labels: Tensor, num_codes: int) -> Tensor:
    """Return the sums (K, V, D) of the ``frames`` (K, M, D) of each code by ``labels`` (K, M), as a product.

    On a GPU ``index_add_`` adds in an order that changes from call to call, a product does not. It is in full float32,
    whatever autocast and the rest of the program take.
    """
    with torch.autocast(frames.device.type, enabled=False), _full_precision():
        is_of_code = (labels[:, :, None] == torch.arange(num_codes, device=labels.device)).to(frames.dtype)
        # (K, V, M) x (K, M, D)
        return is_of_code.transpose(1, 2) @ frames


@contextmanager
def _full_precision() -> Iterator[None]:
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


@final
class OnlineCodebooks(Module):
    """K codebooks whose codes are means of the frames that they were assigned, with less weight on older ones.

    All computations are in float32, also under autocast, where the authors' code rounds sums to bfloat16.
    """

    sums: Tensor
    """(K, V, D) float32, the decayed sum of each code's frames."""

    counts: Tensor
    """(K, V) float32, the decayed number of each code's frames."""

    def __init__(
        self, num_codebooks: int, num_codes: int, dim: int, *, decay: float, initial_scale: float = 1.0
    ) -> None:
        """Create codebooks.

        Args:
            num_codebooks: K.
            num_codes: V.
            dim: D.
            decay: The share of its past that a code keeps when it is updated.
            initial_scale: The standard deviation of the first codes in each dimension.
        """
        super().__init__()
        self.decay = decay
        self.initial_scale = initial_scale
        self.register_buffer("sums", torch.empty((num_codebooks, num_codes, dim), dtype=torch.float32))
        self.register_buffer("counts", torch.empty((num_codebooks, num_codes), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Over the codes of a codebook, each dimension has the mean 0 and, before it is scaled, the variance 1.
        codes = torch.randn_like(self.sums.transpose(1, 2))
        self.sums.copy_(self.initial_scale * layer_norm(codes, codes.shape[2:]).transpose(1, 2))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def assign(self, frames: Tensor) -> Tensor:
        """Return the nearest code (K, M) int64 of each of the ``frames`` (K, M, D), by Euclidean distance."""
        # Autocast leaves this function in float32.
        distances = torch.cdist(frames, self.sums / self.counts[:, :, None])
        return distances.argmin(dim=2)

    @torch.no_grad()
    def update(self, statistics: CodebookStatistics) -> None:
        """Move the codes that got frames; the others stay as they are.

        Args:
            statistics: Of all frames of a step: added up over its batches and, with several processes, over those.
        """
        if self.decay >= 1.0:
            return
        # (K, V); a code without frames keeps everything
        weights = torch.where(statistics.counts > 0, 1.0 - self.decay, 0.0)
        self.counts.lerp_(statistics.counts, weights)
        self.sums.lerp_(statistics.sums, weights[:, :, None])

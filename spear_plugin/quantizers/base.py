"""What quantizers have in common: frames to codes and back.

Letters: B frames, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import embedding_bag
from typing_extensions import override

MAX_CODEBOOK_SIZE: Final = 32_768
"""Batches of codes are int16, since they hold negative padding."""

_STD_FLOOR: Final = 1e-5

# Scores of entries held at once, which bounds the memory: 16 MiB on a CPU, 1 GiB on a GPU.
_CPU_SCORES: Final = 2**22
_GPU_SCORES: Final = 2**28


class FrameQuantizer(Module, ABC):
    """Represents a quantizer of teacher frames: a frame becomes one code of each codebook.

    A code stands for an entry; the sum of a frame's entries approximates it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int, *, normalize: bool) -> None:
        """Set the sizes; with ``normalize``, frames are standardized by the buffers ``mean`` and ``std``."""
        super().__init__()
        self.dim = dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.normalize = normalize
        if normalize:
            self.register_buffer("mean", torch.empty(dim))
            self.register_buffer("std", torch.empty(dim))

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of frames.

        Args:
            x: Frames in the teacher's scale, of any floating-point type (..., D).

        Returns:
            Codes (..., N), uint8 up to 256 entries and int32 beyond; the same whatever the batch, the type of autocast
            and TF32.
        """

    @abstractmethod
    def entries(self) -> Tensor:
        """Return the entries of the codebooks (N, K, D), float32, in the scale of standardized frames."""

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the frames (..., D), float32, in the teacher's scale, of codes (..., N) of an integer type."""
        with full_precision(codes):
            x = self._sum_entries(codes.long(), self.entries())
            return x * (self.std + _STD_FLOOR) + self.mean if self.normalize else x

    def standardize(self, x: Tensor) -> Tensor:
        """Return frames (..., D) in the scale of the entries, float32."""
        x = x.float()
        return (x - self.mean) / (self.std + _STD_FLOOR) if self.normalize else x

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation (D) of the frames to be normalized."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def _reset_statistics(self) -> None:
        if self.normalize:
            self.mean.zero_()
            self.std.fill_(1.0)

    def _encode_chunks(self, x: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Return codes (..., N) of frames (..., D), by chunks (B, D) that ``choose`` gives codes (B, N) for.

        What ``choose`` gets is standardized; it may hold B * N * K scores.
        """
        if x.size(-1) != self.dim:
            raise ValueError(f"`x` must be (..., {self.dim}), but has shape {tuple(x.shape)} instead.")
        num_frames = max((_GPU_SCORES if x.is_cuda else _CPU_SCORES) // (self.num_codebooks * self.codebook_size), 1)
        dtype = torch.uint8 if self.codebook_size <= 256 else torch.int32
        codes = torch.empty(x.shape[:-1].numel(), self.num_codebooks, dtype=dtype, device=x.device)
        with full_precision(x):
            chunks = torch.split(x.reshape(-1, self.dim), num_frames)
            for frames, chunk in zip(chunks, torch.split(codes, num_frames), strict=True):
                chunk.copy_(choose(self.standardize(frames)))
        return codes.view(*x.shape[:-1], self.num_codebooks)

    def _sum_entries(self, codes: Tensor, entries: Tensor) -> Tensor:
        """Return the standardized frames (..., D) of codes (..., N), int64, and entries (N, K, D)."""
        rows = codes + torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size
        x = embedding_bag(rows.view(-1, self.num_codebooks), entries.flatten(0, 1), mode="sum")
        return x.view(*codes.shape[:-1], self.dim)

    @override
    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}, "
            f"normalize={self.normalize}"
        )


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Compute in float32, also under autocast and where TF32 is allowed: codes must not depend on either."""
    with torch.autocast(x.device.type, enabled=False):
        if not x.is_cuda:
            yield
            return
        matmul = torch.backends.cuda.matmul
        precision, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = precision

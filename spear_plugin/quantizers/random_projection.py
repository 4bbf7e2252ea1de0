"""Random-projection quantization, the targets of BEST-RQ (arXiv 2202.01855).

A fixed random matrix projects the frame to a few dimensions, where the code is the random unit vector of the smallest
angle. Nothing is trained. The published frames are standardized log-mel energies, which is what ``normalize`` is for.

Letters: B frames of a chunk, D width, P width of the projection, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.nn.functional import normalize
from typing_extensions import override

from spear_plugin.quantizers.measured import MeasuredQuantizer


class RandomProjectionQuantizer(MeasuredQuantizer):
    """Represents a quantizer of fixed random projections and codebooks."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        *,
        projection_dim: int = 16,
        seed: int = 42,
        normalize: bool = False,
    ) -> None:
        """Draw projections and codebooks.

        Args:
            dim: Width of the frames.
            codebook_size: Number of entries of a codebook.
            num_codebooks: Number of codebooks, each with a projection of its own.
            projection_dim: Width of the space in which frames and entries are compared.
            seed: Of the draws; the same on every device, whatever others draw.
            normalize: Standardize the frames by the buffers ``mean`` and ``std``.
        """
        super().__init__(dim, codebook_size, num_codebooks, normalize=normalize)
        self.seed = seed
        self.projections = Parameter(torch.empty(num_codebooks, projection_dim, dim))
        self.codebooks = Parameter(torch.empty(num_codebooks, codebook_size, projection_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections (Xavier) and codebooks (normal, of unit length), and reset what was measured."""
        generator = Generator().manual_seed(self.seed)
        bound = (6.0 / (self.projections.size(1) + self.dim)) ** 0.5
        self.projections.copy_((2.0 * torch.rand(self.projections.shape, generator=generator) - 1.0) * bound)
        self.codebooks.copy_(normalize(torch.randn(self.codebooks.shape, generator=generator), dim=-1))
        self._reset_measures()

    @torch.no_grad()
    @override
    def encode(self, x: Tensor) -> Tensor:
        projections, codebooks = self.projections.float(), self.codebooks.float()

        def choose(frames: Tensor) -> Tensor:
            # (B, D), (N, P, D) -> (N, B, P); its length does not change which entry has the smallest angle
            projected = frames @ projections.mT
            # (N, B, P), (N, K, P) -> (N, B, K) -> (B, N)
            return (projected @ codebooks.mT).argmax(dim=-1).T

        return self._encode_chunks(x, choose)

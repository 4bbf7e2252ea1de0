"""Random-projection quantization, the targets of BEST-RQ (arXiv 2202.01855).

A fixed random matrix projects the frame to a few dimensions, where the code is the random unit vector of the smallest
angle. Nothing is trained. The published frames are standardized log-mel energies, which is what ``normalize`` is for.

Codes of random directions cannot be decoded by what they are made of. For reports a code is therefore decoded to the
mean of the frames that have it, as measured once; the codes do not depend on that.

Letters: F frames, B frames of a chunk, D width, P width of the projection, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.nn.functional import embedding, normalize
from typing_extensions import override

from spear_plugin.quantizers.base import FrameQuantizer, full_precision

_CHUNK_SIZE: Final = 4096


class RandomProjectionQuantizer(FrameQuantizer):
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
        self.centers = Parameter(torch.empty(num_codebooks, codebook_size, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections (Xavier) and codebooks (normal, of unit length), and reset what codes are decoded to."""
        generator = Generator().manual_seed(self.seed)
        bound = (6.0 / (self.projections.size(1) + self.dim)) ** 0.5
        self.projections.copy_((2.0 * torch.rand(self.projections.shape, generator=generator) - 1.0) * bound)
        self.codebooks.copy_(normalize(torch.randn(self.codebooks.shape, generator=generator), dim=-1))
        self.centers.zero_()
        self._reset_statistics()

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

    @override
    def entries(self) -> Tensor:
        return self.centers.float()

    @torch.no_grad()
    def fit_centers(self, frames: Tensor) -> None:
        """Set what codes are decoded to, from frames (F, D) in the teacher's scale.

        An entry gets the mean of the frames that have its code; of the second codebook and later ones, the mean of what
        the ones before leave of them. Entries that no frame has get the mean of all.
        """
        codes = torch.cat([self.encode(x.to(self.device)) for x in torch.split(frames, _CHUNK_SIZE)]).long()
        self.centers.zero_()
        for codebook in range(self.num_codebooks):
            sums = self.centers.new_zeros(self.codebook_size, self.dim, dtype=torch.float64)
            for x, chunk in zip(torch.split(frames, _CHUNK_SIZE), torch.split(codes, _CHUNK_SIZE), strict=True):
                sums.index_add_(0, chunk[:, codebook], self._residual(x.to(self.device), chunk, codebook).double())
            counts = codes[:, codebook].bincount(minlength=self.codebook_size)[:, None]
            means = torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum(dim=0) / len(frames))
            self.centers[codebook] = means.to(self.centers.dtype)

    def _residual(self, frames: Tensor, codes: Tensor, num_codebooks: int) -> Tensor:
        """Return what the first codebooks leave of frames (B, D) with codes (B, N), standardized."""
        with full_precision(frames):
            residual = self.standardize(frames)
            for codebook in range(num_codebooks):
                residual = residual - embedding(codes[:, codebook], self.centers[codebook].float())
        return residual

"""Quantizers whose codes cannot be decoded by what they are made of.

For reports, a code is decoded to the mean of the frames that have it, as measured once; codes do not depend on that.

Letters: F frames, B frames of a chunk, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import embedding
from typing_extensions import override

from spear_plugin.quantizers.base import FrameQuantizer, full_precision

_CHUNK_SIZE: Final = 4096


class MeasuredQuantizer(FrameQuantizer):
    """Represents a quantizer whose entries are measured on frames."""

    centers: Parameter

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int, *, normalize: bool) -> None:
        """Set the sizes; see :class:`FrameQuantizer`."""
        super().__init__(dim, codebook_size, num_codebooks, normalize=normalize)
        self.centers = Parameter(torch.empty(num_codebooks, codebook_size, dim))

    @torch.no_grad()
    def _reset_measures(self) -> None:
        self.centers.zero_()
        self._reset_statistics()

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

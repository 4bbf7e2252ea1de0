"""k-means quantization of teacher frames, the targets of HuBERT (arXiv 2106.07447): the code is the nearest centre.

Letters: B frames, D width, K centres.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import override

from spear_plugin.quantizers.base import FrameQuantizer


class KMeansQuantizer(FrameQuantizer):
    """Represents a quantizer of one codebook whose entries are the centres of clusters."""

    def __init__(self, dim: int, codebook_size: int, *, normalize: bool = False) -> None:
        """Make a quantizer with random centres.

        Args:
            dim: Width of the frames.
            codebook_size: Number of centres.
            normalize: Standardize the frames by the buffers ``mean`` and ``std``.
        """
        super().__init__(dim, codebook_size, 1, normalize=normalize)
        self.centers = Parameter(torch.empty(codebook_size, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the centres to points of the standard normal distribution, and the statistics."""
        torch.nn.init.normal_(self.centers)
        self._reset_statistics()

    @torch.no_grad()
    @override
    def encode(self, x: Tensor) -> Tensor:
        centers = self.centers.float()
        square_norms = centers.square().sum(dim=-1)

        def choose(frames: Tensor) -> Tensor:
            # (B, D) -> (B, K): |c|² - 2 <x, c>, the squared distance up to a constant of the frame
            return torch.addmm(square_norms, frames, centers.T, alpha=-2.0).argmin(dim=-1, keepdim=True)

        return self._encode_chunks(x, choose)

    @override
    def entries(self) -> Tensor:
        return self.centers.float()[None]

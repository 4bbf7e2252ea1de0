"""The codes that another model predicts: those of the linear classifiers that it was trained with, its heads.

So a SPEAR or SpidR model can teach the next one its own units, without the teachers it was trained by.

Letters: B frames of a chunk, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import override

from spear_plugin.quantizers.measured import MeasuredQuantizer


class ClassifierQuantizer(MeasuredQuantizer):
    """Represents linear classifiers; a code is the likeliest class."""

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int) -> None:
        """Make classifiers that are the same for all classes.

        Args:
            dim: Width of the frames.
            codebook_size: Classes of each classifier.
            num_codebooks: Number of classifiers.
        """
        super().__init__(dim, codebook_size, num_codebooks, normalize=False)
        self.weight = Parameter(torch.empty(num_codebooks, codebook_size, dim))
        self.bias = Parameter(torch.empty(num_codebooks, codebook_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset the classifiers, and what codes are decoded to."""
        self.weight.zero_()
        self.bias.zero_()
        self._reset_measures()

    @torch.no_grad()
    def set_classifiers(self, weight: Tensor, bias: Tensor) -> None:
        """Take over weights (N, K, D) and biases (N, K)."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    @torch.no_grad()
    @override
    def encode(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()

        def choose(frames: Tensor) -> Tensor:
            # (B, D), (N * K, D) -> (B, N, K) -> (B, N)
            logits = torch.addmm(bias.flatten(), frames, weight.flatten(0, 1).T)
            return logits.view(-1, self.num_codebooks, self.codebook_size).argmax(dim=-1)

        return self._encode_chunks(x, choose)

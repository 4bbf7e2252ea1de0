"""Classifiers that predict the codes of the teacher's layers. Letters: K heads, V codes of each, M frames, D width."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import linear
from typing_extensions import override


@final
class CodeHeads(Module):
    """K linear classifiers over V codes, each for its own frames, computed as one batched product."""

    weight: Parameter
    bias: Parameter

    def __init__(self, num_heads: int, num_codes: int, dim: int) -> None:
        """Create K heads of V codes on D channels."""
        super().__init__()
        self.weight = Parameter(torch.empty((num_heads, num_codes, dim)))
        self.bias = Parameter(torch.empty((num_heads, num_codes)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # As torch initializes a linear layer.
        bound = self.weight.size(2) ** -0.5
        for parameter in (self.weight, self.bias):
            torch.nn.init.uniform_(parameter, -bound, bound)

    @override
    def forward(self, frames: Tensor) -> Tensor:
        """Return float32 logits (K, M, V) for ``frames`` (K, M, D)."""
        return torch.baddbmm(self.bias[:, None, :], frames, self.weight.transpose(1, 2)).float()

    def predict(self, index: int, frames: Tensor) -> Tensor:
        """Return float32 logits (..., V) of one head for ``frames`` (..., D)."""
        return linear(frames, self.weight[index], self.bias[index]).float()

    if TYPE_CHECKING:
        __call__ = forward

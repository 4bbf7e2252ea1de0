"""Activations and the norm of Zipformer (Yao et al., 2024, https://arxiv.org/abs/2310.11230, sections 3.3 and 3.4).

Letters: D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

SMALLEST_RMS: Final = 1e-4
"""BiasNorm treats a frame closer than this to its bias as if it were this far: a frame of zeros gives zeros and finite
gradients where the plain formula gives NaN. Frames of a working model are thousands of times further away."""


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    """log(1 + e^(x - shift)) - 0.08 x - offset, in float32 and returned in the type of ``x``."""
    y = F.softplus(x.float() - shift)

    return torch.sub(y.sub_(offset), x, alpha=0.08).type_as(x)


class SwooshL(Module):
    """SwooshL(x) = log(1 + e^(x - 4)) - 0.08 x - 0.035: nearly flat around 0, for the inside of a residual branch."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _swoosh(x, 4.0, 0.035)

    if TYPE_CHECKING:
        __call__ = forward


class SwooshR(Module):
    """SwooshR(x) = log(1 + e^(x - 1)) - 0.08 x - 0.313261687: passes through 0, for convolutions."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _swoosh(x, 1.0, 0.313261687)

    if TYPE_CHECKING:
        __call__ = forward


class BiasNorm(Module):
    """Normalizes by the root mean square around a learned bias, which lets a model keep a sense of absolute length.

    BiasNorm(x) = x * exp(log_scale) / RMS(x - bias), with the RMS over the last axis (Zipformer, equation 4). Note that
    the bias is not subtracted from the result.
    """

    log_scale: Parameter
    bias: Parameter

    def __init__(self, dim: int) -> None:
        super().__init__()

        self.log_scale = Parameter(torch.empty(()))
        self.bias = Parameter(torch.empty(dim))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.log_scale)
        torch.nn.init.normal_(self.bias, std=1e-4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., D) scaled; float32 parameters make the result float32 under autocast."""
        norm = torch.linalg.vector_norm(x - self.bias, dim=-1, keepdim=True)

        # `clamp_min` cuts the gradient off where the norm's own derivative, 1 / norm, would explode.
        rms = (norm * self.bias.numel() ** -0.5).clamp_min(SMALLEST_RMS)

        return x * (self.log_scale.exp() / rms)

    if TYPE_CHECKING:
        __call__ = forward

"""Activations and the norm of Zipformer (Yao et al., 2024, https://arxiv.org/abs/2310.11230, sections 3.3 and 3.4).

Letters: D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import Module, Parameter
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from spear_plugin.nn.gradients import ParameterLimits

SMALLEST_RMS: Final = 1e-4
"""BiasNorm treats a frame closer than this to its bias as if it were this far: a frame of zeros gives zeros and finite
gradients where the plain formula gives NaN. Frames of a working model are thousands of times further away."""


class _Swoosh(Function):
    """log(1 + e^(x - shift)) - 0.08 x - offset, in at least float32 and returned in the type of ``x``.

    The activations take a fifth of a training step on a CPU; the closed form of the derivative saves half of that.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shift: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)

        ctx.shift = shift  # type: ignore[attr-defined]

        return _swoosh(x, shift, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors

        return _swoosh_slope(x, ctx.shift).mul_(grad).type_as(x), None, None


class _SwooshLinear(Function):
    """A linear layer on an activation with dropout, which keeps what the activation takes and not what it gives.

    The backward pass computes that again, a fraction of the cost of its products of matrices.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, shift: float, offset: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)  # type: ignore[arg-type]  # None may be saved too

        ctx.shift, ctx.offset = shift, offset  # type: ignore[attr-defined]

        return F.linear(_drop(_swoosh(x, shift, offset), mask).type_as(weight), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mask = ctx.saved_tensors

        rows = grad.flatten(0, -2)
        y = _drop(_swoosh(x, ctx.shift, ctx.offset), mask).type_as(grad).flatten(0, -2)
        grad_weight, grad_bias = rows.mT.mm(y), rows.sum(dim=0)
        del y

        slope = _drop(_swoosh_slope(x, ctx.shift), mask)
        grad_x = slope.mul_(rows.mm(weight).view_as(x)).type_as(x)

        return grad_x, grad_weight, grad_bias, None, None, None


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    return F.softplus(_at_least_float32(x) - shift).sub_(x, alpha=0.08).sub_(offset).type_as(x)


def _swoosh_slope(x: Tensor, shift: float) -> Tensor:
    """Return the derivative, in at least float32."""
    return (_at_least_float32(x) - shift).sigmoid_().sub_(0.08)


def _drop(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.mul_(mask)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Swoosh(Module):
    """Base of the activations: log(1 + e^(x - shift)) - 0.08 x - offset."""

    shift: ClassVar[float]
    offset: ClassVar[float]

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Swoosh.apply(x, self.shift, self.offset)  # type: ignore[no-untyped-call]

        return y

    def project(self, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a linear function of the activation, in less memory than both would take one after the other.

        :param x: What the activation takes (..., D).
        :param weight: The linear layer's weight (D', D).
        :param bias: Its bias (D').
        :param mask: Factors on the activation, of a shape that broadcasts to that of ``x``; None for ones.

        :returns: (..., D'), under autocast in half precision.
        """
        device_type = x.device.type

        if torch.is_autocast_enabled(device_type):
            # Not by autocast itself, which would keep a copy made without gradients for the weight's other uses.
            dtype = torch.get_autocast_dtype(device_type)

            weight, bias = weight.to(dtype), bias.to(dtype)

        y: Tensor = _SwooshLinear.apply(x, weight, bias, mask, self.shift, self.offset)  # type: ignore[no-untyped-call]

        return y

    if TYPE_CHECKING:
        __call__ = forward


class SwooshL(Swoosh):
    """SwooshL(x) = log(1 + e^(x - 4)) - 0.08 x - 0.035: nearly flat around 0, for the inside of a residual branch."""

    shift = 4.0
    offset = 0.035


class SwooshR(Swoosh):
    """SwooshR(x) = log(1 + e^(x - 1)) - 0.08 x - 0.313261687: passes through 0, for convolutions."""

    shift = 1.0
    offset = 0.313261687


class BiasNorm(Module):
    """Normalizes by the root mean square around a learned bias, which lets a model keep a sense of absolute length.

    BiasNorm(x) = x * exp(log_scale) / RMS(x - bias), with the RMS over the last axis (Zipformer, equation 4). Note that
    the bias is not subtracted from the result.
    """

    log_scale: Parameter
    """(1,), and not without an axis as in the authors' code, because FSDP shards parameters along their first one."""

    bias: Parameter

    def __init__(self, dim: int, limits: ParameterLimits | None = None) -> None:
        """Create a norm of D channels whose ``log_scale`` stays within ``limits``, if given, in training."""
        super().__init__()

        self.limits = limits
        self.log_scale = Parameter(torch.empty(1))
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

        log_scale = self.log_scale if self.limits is None else self.limits(self.log_scale)

        y: Tensor = x * (log_scale.exp() / rms)

        return y

    if TYPE_CHECKING:
        __call__ = forward

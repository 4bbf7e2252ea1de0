"""Devices that leave the forward pass alone and change gradients (SPEAR's training code; Zipformer, section 3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import Module
from typing_extensions import override

from spear_plugin.nn.schedules import Schedule, as_schedule, draw_uniform

Mode: TypeAlias = Literal["off", "scheduled", "forced"]
"""When a rule for gradients acts: never; at random at its scheduled rate, as the authors train; in every call."""

LIMIT_PROBABILITY: Final = 0.6
PENALTY_PROBABILITY: Final = 0.1

SCORE_LIMIT: Final = 25.0
SCORE_PENALTY: Final = 1e-4


class GradientRule(Module):
    """Base of the rules, which act in training only. A rule draws one number per call, on the host, to see if it acts.

    The authors' rules act in evaluation too where gradients are asked for; ours do not.
    """

    def __init__(self, mode: Mode) -> None:
        super().__init__()

        self.mode = mode

    def _acts(self, x: Tensor, probability: float) -> bool:
        if not self._may_act(x):
            return False

        return self.mode == "forced" or draw_uniform() < probability

    def _may_act(self, x: Tensor) -> bool:
        return self.training and self.mode != "off" and x.requires_grad and torch.is_grad_enabled()


class ParameterLimits(GradientRule):
    """Keeps a parameter softly in a range: beyond it, a gradient that would lead further out changes its sign.

    It acts in 60 % of the calls. The parameter itself is never clipped, and the forward pass uses it as it is.
    """

    def __init__(self, low: float | Schedule, high: float | Schedule, *, mode: Mode = "off") -> None:
        super().__init__(mode)

        self.low = as_schedule(low)
        self.high = as_schedule(high)

    @override
    def forward(self, parameter: Tensor) -> Tensor:
        """Return ``parameter`` unchanged."""
        if not self._acts(parameter, LIMIT_PROBABILITY):
            return parameter

        y: Tensor = _Limit.apply(parameter, self.low.value, self.high.value)  # type: ignore[no-untyped-call]

        return y

    if TYPE_CHECKING:
        __call__ = forward


class _Limit(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, parameter: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(parameter)

        ctx.low, ctx.high = low, high  # type: ignore[attr-defined]

        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (parameter,) = ctx.saved_tensors

        grad = torch.where((grad > 0.0) & (parameter < ctx.low), -grad, grad)

        return torch.where((grad < 0.0) & (parameter > ctx.high), -grad, grad), None, None


class ScorePenalty(GradientRule):
    """Pulls attention scores beyond +-25 back with a gradient of +-1e-4, in a tenth of the calls."""

    @override
    def forward(self, scores: Tensor) -> Tensor:
        """Return ``scores``; those of padded keys must not be masked yet."""
        if not self._acts(scores, PENALTY_PROBABILITY):
            return scores

        y: Tensor = _PenalizeScores.apply(scores)  # type: ignore[no-untyped-call]

        return y

    if TYPE_CHECKING:
        __call__ = forward


class _PenalizeScores(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor) -> Tensor:
        # Signs in bytes take a quarter of the memory and outlive a change of the scores in place.
        ctx.save_for_backward((scores > SCORE_LIMIT).to(torch.int8).sub_((scores < -SCORE_LIMIT).to(torch.int8)))

        return scores.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (signs,) = ctx.saved_tensors

        return torch.add(grad, signs.type_as(grad), alpha=SCORE_PENALTY)


class GradientScale(Module):
    """Multiplies gradients by a constant in training."""

    def __init__(self, scale: float) -> None:
        super().__init__()

        self.scale = scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` unchanged."""
        if not self.training or self.scale == 1.0:
            return x

        y: Tensor = _ScaleGradient.apply(x, self.scale)  # type: ignore[no-untyped-call]

        return y

    @override
    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"

    if TYPE_CHECKING:
        __call__ = forward


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]

        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None

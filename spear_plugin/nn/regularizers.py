"""Balancer and Whiten: statistics of activations kept in a healthy range by their gradients alone.

Both are the identity in the forward pass; what they add to a gradient is proportional to it, so neither depends on the
scale of the loss. They compute in float32 (Zipformer, section 3.5, and SPEAR's training code).

Letters: R all axes but the channels, C channels, G groups of channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import Module
from typing_extensions import override

from spear_plugin.nn.gradients import GradientRule, Mode
from spear_plugin.nn.schedules import Schedule, as_schedule, draw_uniform

BALANCER_SCALE: Final = 0.04

MIN_WHITEN_PROBABILITY: Final = 0.025
MAX_WHITEN_PROBABILITY: Final = 0.25

_TINY: Final = 1e-20


class Balancer(GradientRule):
    """Pushes each channel's share of positive values and its root mean square into their ranges.

    For a channel outside, with ``L`` the gradient that leads back in, scaled to a root mean square of 0.04, the
    gradient becomes ``g + |g| L``. The push does not grow with the distance. Shares are measured as mean by standard
    deviation, as if values were distributed almost normally.
    """

    def __init__(
        self,
        *,
        min_positive: float | Schedule,
        max_positive: float | Schedule,
        min_abs: float | Schedule,
        max_abs: float | Schedule,
        probability: float | Schedule,
        channel_dim: int = -1,
        mode: Mode = "off",
    ) -> None:
        """Create a balancer.

        :param min_positive: The smallest share of positive values in a channel, in [0, 1].
        :param max_positive: The largest one.
        :param min_abs: The smallest mean magnitude of a channel, as that of normally distributed values.
        :param max_abs: The largest one.
        :param probability: The share of calls in which it acts.
        :param channel_dim: The axis of the channels.
        :param mode: When it acts.
        """
        super().__init__(mode)

        self.min_positive = as_schedule(min_positive)
        self.max_positive = as_schedule(max_positive)
        self.min_abs = as_schedule(min_abs)
        self.max_abs = as_schedule(max_abs)
        self.probability = as_schedule(probability)
        self.channel_dim = channel_dim

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` unchanged."""
        if not self._acts(x, self.probability.value):
            return x

        bounds = _Bounds(
            _mean_of_share(self.min_positive.value),
            _mean_of_share(self.max_positive.value),
            _RMS_OF_MAGNITUDE * self.min_abs.value,
            _RMS_OF_MAGNITUDE * self.max_abs.value,
            self.channel_dim,
        )

        y: Tensor = _Balance.apply(x, bounds)  # type: ignore[no-untyped-call]

        return y

    if TYPE_CHECKING:
        __call__ = forward


_RMS_OF_MAGNITUDE: Final = 1.25331413732
"""sqrt(pi / 2): the root mean square of normal values with a mean magnitude of 1."""


def _mean_of_share(share: float) -> float:
    """Return the mean, in standard deviations, at which about this share of values is positive."""
    y = 2.0 * share - 1.0

    return 0.8139535143 * (math.log(1.0 + y + 1e-10) - math.log(1.0 - y + 1e-10)) / 2.0


@dataclass(frozen=True)
class _Bounds:
    min_mean: float
    max_mean: float
    min_rms: float
    max_rms: float
    channel_dim: int


class _Balance(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, bounds: _Bounds) -> Tensor:
        ctx.save_for_backward(x)

        ctx.bounds = bounds  # type: ignore[attr-defined]

        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors

        x, precise_grad = _at_least_float32(x), _at_least_float32(grad)

        offset, slope = _balancing_push(x, ctx.bounds)

        push = torch.addcmul(offset, slope, x)

        return torch.addcmul(precise_grad, precise_grad.abs(), push).type_as(grad), None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _balancing_push(x: Tensor, bounds: _Bounds) -> tuple[Tensor, Tensor]:
    """Return what the push on each channel is made of: ``offset + slope * x``.

    It is the gradient of ``|m - clamp(m)| + |ln(clamp(r) / r)|`` for a channel with ``m`` its mean by its standard
    deviation ``s`` and ``r`` its root mean square, scaled. Around the mean that gradient is, but for a factor that the
    scaling takes out, ``level + gain * (x - mean)``, so its own root mean square needs no second pass over ``x``.
    """
    dims = [dim for dim in range(x.ndim) if dim != bounds.channel_dim % x.ndim]

    mean = x.mean(dim=dims, keepdim=True)
    mean_square = x.square().mean(dim=dims, keepdim=True)

    std = (mean_square - mean.square()).clamp_min(_TINY).sqrt()
    rms = mean_square.clamp_min(_TINY).sqrt()

    ratio = mean / std

    mean_sign = (ratio > bounds.max_mean).type_as(x) - (ratio < bounds.min_mean).type_as(x)
    rms_sign = (rms > bounds.max_rms).type_as(x) - (rms < bounds.min_rms).type_as(x)

    level = mean_sign / std + rms_sign * mean / rms.square()
    gain = rms_sign / rms.square() - mean_sign * mean / std.pow(3)

    size = (level.square() + (gain * std).square()).sqrt()

    num_values = x.numel() // mean.numel()

    scale = BALANCER_SCALE / size.clamp_min(_TINY * num_values)

    return scale * (level - gain * mean), scale * gain


class Whiten(GradientRule):
    """Keeps the channels of a group from being too much alike.

    The metric is 1 if a group's covariance is a multiple of the identity and all groups' are equally large, and grows
    to C / G. Above the limit its gradient, scaled to a share of the incoming gradient's norm, is added to that.

    A call acts with a probability of 0.25, or of 0.025 after the metric has been seen below the limit. What was seen
    stays on the device. Where reading it would stall, a call that only the higher probability chose is prepared and
    then, on the device, adds nothing.
    """

    is_white: Tensor | None
    """() uint8, 1 if the metric was below the limit when last seen. :class:`TrainingState` keeps it in a checkpoint."""

    def __init__(self, *, limit: float | Schedule, grad_scale: float, num_groups: int = 1, mode: Mode = "off") -> None:
        """Create a whitener.

        :param limit: The largest metric that is left alone, at least 1.
        :param grad_scale: The norm of what is added, as a share of the gradient's.
        :param num_groups: G; channels of different groups may be alike.
        :param mode: When it acts.
        """
        super().__init__(mode)

        self.limit = as_schedule(limit)
        self.grad_scale = grad_scale
        self.num_groups = num_groups
        self.is_white = None

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (..., C) unchanged."""
        if not self._may_act(x):
            return x

        if self.is_white is None or self.is_white.device != x.device:
            self.is_white = torch.zeros((), dtype=torch.uint8, device=x.device)

        is_certain = True

        if self.mode != "forced":
            u = draw_uniform()

            if u > MAX_WHITEN_PROBABILITY:
                return x

            is_certain = u <= MIN_WHITEN_PROBABILITY

            if not is_certain and is_readable(x):
                if self.is_white.item():
                    return x

                is_certain = True

        rule = _WhitenRule(self.limit.value, self.grad_scale, self.num_groups, self.is_white, is_certain)

        y: Tensor = _Whiten.apply(x, rule)  # type: ignore[no-untyped-call]

        return y

    if TYPE_CHECKING:
        __call__ = forward


def is_readable(x: Tensor) -> bool:
    """Return whether the host may look at a value without waiting for a device."""
    return x.device.type == "cpu"


@dataclass(frozen=True)
class _WhitenRule:
    limit: float
    grad_scale: float
    num_groups: int
    is_white: Tensor
    is_certain: bool
    """If False, the rule acts only where ``is_white`` is 0 still."""


class _Whiten(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, rule: _WhitenRule) -> Tensor:
        ctx.save_for_backward(x)

        ctx.rule = rule  # type: ignore[attr-defined]

        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors

        rule: _WhitenRule = ctx.rule

        groups, covariances, trace, square = _covariances(_at_least_float32(x), rule.num_groups)

        num_channels = x.size(-1)

        mean_trace, mean_square = trace / num_channels, square / num_channels

        is_white = (mean_square / (mean_trace.square() + _TINY) < rule.limit).to(torch.uint8)

        acts = torch.ones_like(is_white) if rule.is_certain else 1 - rule.is_white

        rule.is_white.copy_(torch.where(acts == 1, is_white, rule.is_white))

        if is_readable(x) and is_white.item():
            return grad, None

        # (G, R, C / G) -> (R, G, C / G) -> (..., C)
        penalty = torch.baddbmm(groups, groups, covariances, beta=0.0) - groups * (mean_square / mean_trace)
        penalty = penalty.transpose(0, 1).reshape(x.shape) * (4.0 / (num_channels * mean_trace.square()))

        scale = rule.grad_scale * _at_least_float32(grad).norm() / (penalty.norm() + _TINY)

        return torch.where((acts * (1 - is_white)) == 1, grad + (penalty * scale).type_as(grad), grad), None


def _covariances(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the centred channels (G, R, C / G), their scatter (G, C / G, C / G), and its trace and square, summed."""
    # (..., C) -> (R, G, C / G) -> (G, R, C / G)
    groups = x.reshape(-1, num_groups, x.size(-1) // num_groups).transpose(0, 1)
    groups = groups - groups.mean(dim=1, keepdim=True)

    covariances = groups.mT @ groups

    return groups, covariances, covariances.diagonal(dim1=1, dim2=2).sum(), covariances.square().sum()


def whiteners(model: Module) -> Iterator[Whiten]:
    """Yield the whiteners of ``model`` in the order in which it was built."""
    yield from (module for module in model.modules() if isinstance(module, Whiten))

"""One Zipformer layer and its modules without attention (Zipformer, section 3.2).

Letters: N batch, T frames, D width, H heads, P width of the positional encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fairseq2.nn import Linear
from torch import Tensor
from torch.nn import Conv1d, Module, Parameter
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from spear_plugin.models.zipformer.attention import NonlinearAttention, RelativeAttentionWeights, SelfAttention
from spear_plugin.models.zipformer.initialization import BRANCH_SCALE, FEED_FORWARD_SCALE, scaled
from spear_plugin.models.zipformer.regularization import PLAIN, Regularizers, draw_kept_rows, keep_rows, ramp
from spear_plugin.nn.activations import BiasNorm, Swoosh, SwooshL, SwooshR
from spear_plugin.nn.gradients import ParameterLimits
from spear_plugin.nn.schedules import Schedule, as_schedule, constant


class TimeSharedDropout(Module):
    """Dropout of whole channels: every frame of an utterance loses the same ones."""

    def __init__(self, p: float | Schedule) -> None:
        super().__init__()

        self.p = as_schedule(p)

    @override
    def forward(self, x: Tensor) -> Tensor:
        mask = self.draw_mask(x)

        return x if mask is None else x * mask

    def draw_mask(self, x: Tensor) -> Tensor | None:
        """Return factors (N, 1, D) for ``x`` (N, T, D), drawn on its device; None, without a draw, for ones."""
        p = self.p.value if self.training else 0.0

        if p == 0.0:
            return None

        return x.new_empty((x.size(0), 1, x.size(-1))).bernoulli_(1.0 - p).div_(1.0 - p)

    if TYPE_CHECKING:
        __call__ = forward


class FeedForward(Module):
    def __init__(self, dim: int, inner_dim: int, regularizers: Regularizers = PLAIN) -> None:
        super().__init__()

        self.in_proj = Linear(dim, inner_dim, bias=True)
        self.activation = SwooshL()
        self.dropout = TimeSharedDropout(regularizers.create_dropout())
        self.out_proj = Linear(inner_dim, dim, bias=True, init_fn=scaled(FEED_FORWARD_SCALE))

        self.hidden_balancer = regularizers.create_balancer((0.3, 1.0), (0.75, 5.0))
        self.out_whiten = regularizers.create_whitener(7.5, 2.0)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden_balancer(self.in_proj(x))

        return self.out_whiten(_project(self.activation, self.out_proj, x, self.dropout.draw_mask(x)))

    if TYPE_CHECKING:
        __call__ = forward


def _project(activation: Swoosh, linear: Linear, x: Tensor, mask: Tensor | None = None) -> Tensor:
    assert linear.bias is not None

    return activation.project(x, linear.weight, linear.bias, mask)


class ConvolutionModule(Module):
    """Gated linear unit, depthwise convolution over time, activation and projection."""

    def __init__(self, dim: int, kernel_size: int, regularizers: Regularizers = PLAIN) -> None:
        super().__init__()

        self.in_proj = Linear(dim, 2 * dim, bias=True)
        self.depthwise_conv = Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.activation = SwooshR()
        self.out_proj = Linear(dim, dim, bias=True, init_fn=scaled(BRANCH_SCALE))

        self.balancer1 = regularizers.create_balancer(
            (ramp(0.05, 0.025, until=8000.0), 1.0), (1.5, ramp(5.0, 10.0, until=8000.0))
        )
        self.balancer2 = regularizers.create_balancer((ramp(0.1, 0.05, until=8000.0), 1.0), (ramp(0.2, 0.5), 10.0))
        self.whiten = regularizers.create_whitener(7.5, 2.0)

    @override
    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return (N, T, D) from ``x`` (N, T, D); the convolution sees zeros where ``padding_mask`` (N, T) is True."""
        x = self._gate(self.in_proj(x))

        if padding_mask is not None:
            x = x.masked_fill_(padding_mask[:, :, None], 0.0)

        # (N, T, D) -> (N, D, T) -> (N, T, D)
        x = self.whiten(self.balancer2(self._convolve(x.mT).mT))

        return _project(self.activation, self.out_proj, x)

    def _gate(self, x: Tensor) -> Tensor:
        """Return (N, T, D) from values and gates (N, T, 2 D)."""
        values, gates = x.chunk(2, dim=-1)

        balanced = self.balancer1(gates)

        # What does not act returns its input. Then the product and its gradient are one operation.
        return F.glu(x, dim=-1) if balanced is gates else values * balanced.sigmoid()

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.depthwise_conv

        if x.device.type != "cpu":
            y: Tensor = conv(x)

            return y

        # The CPU has a kernel for images that is 3 to 4 times faster, forward and backward, than the one for sequences.
        padding = (conv.kernel_size[0] // 2, 0)

        return F.conv2d(x[..., None], conv.weight[..., None], conv.bias, padding=padding, groups=conv.groups)[..., 0]

    if TYPE_CHECKING:
        __call__ = forward


class Bypass(Module):
    """Mixes the input of a module with its output, channel by channel: ``x + (y - x) * bypass_scale``.

    In training the scale is softly limited to [0.2, 1], at first to [0.9, 1], and an utterance that skips the module
    keeps its input.
    """

    bypass_scale: Parameter

    def __init__(self, dim: int, limits: ParameterLimits | None = None, skip: Schedule | None = None) -> None:
        super().__init__()

        self.limits = limits
        self.skip = skip or constant(0.0)

        self.bypass_scale = Parameter(torch.empty(dim))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.constant_(self.bypass_scale, 0.5)

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.bypass_scale if self.limits is None else self.limits(self.bypass_scale)

        return x + (y - x) * keep_rows(scale, draw_kept_rows(x, self.skip))

    if TYPE_CHECKING:
        __call__ = forward


class ZipformerLayer(Module):
    """Represents a Zipformer layer, whose three feed-forward modules grow from the first to the last."""

    def __init__(
        self,
        self_attn_weights: RelativeAttentionWeights,
        self_attentions: tuple[SelfAttention, SelfAttention],
        nonlin_attention: NonlinearAttention,
        feed_forwards: tuple[FeedForward, FeedForward, FeedForward],
        conv_modules: tuple[ConvolutionModule, ConvolutionModule],
        dim: int,
        regularizers: Regularizers = PLAIN,
        layer_skip: Schedule | None = None,
    ) -> None:
        """Put a layer together.

        :param layer_skip: The share of utterances that skip the layer; the other rates are the same for all layers.
        """
        super().__init__()

        self.bypass = Bypass(dim, regularizers.create_bypass_limits(), layer_skip)
        self.bypass_mid = Bypass(dim, regularizers.create_bypass_limits())

        self.self_attn_weights = self_attn_weights
        self.self_attn1, self.self_attn2 = self_attentions
        self.nonlin_attention = nonlin_attention
        self.feed_forward1, self.feed_forward2, self.feed_forward3 = feed_forwards
        self.conv_module1, self.conv_module2 = conv_modules
        self.norm = BiasNorm(dim, regularizers.create_norm_limits())

        self._create_regularizers(regularizers)

    def _create_regularizers(self, regularizers: Regularizers) -> None:
        create_skip, create_balancer = regularizers.create_branch_skip, regularizers.create_balancer

        self.attention_skip = create_skip((0.0, 0.2), (4000.0, 0.05), (16000.0, 0.0))
        self.conv_skip = create_skip((0.0, 0.2), (4000.0, 0.05), (16000.0, 0.0))
        self.ff2_skip = create_skip((0.0, 0.1), (4000.0, 0.01), (50000.0, 0.0))
        self.ff3_skip = create_skip((0.0, 0.1), (4000.0, 0.01), (50000.0, 0.0))

        self.balancer_na = create_balancer((0.3, 0.7), (ramp(0.004, 0.02, until=4000.0), 100.0), probability=0.05)
        self.balancer_ff2 = create_balancer((0.3, 0.7), (ramp(0.0, 0.1, until=4000.0), 2.0), probability=0.05)
        self.balancer_ff3 = create_balancer((0.3, 0.7), (ramp(0.0, 0.2, until=4000.0), 4.0), probability=0.05)
        self.balancer1 = create_balancer((0.45, 0.55), (0.2, 4.0))
        self.balancer2 = create_balancer((0.45, 0.55), (0.1, 4.0))

        self.whiten = regularizers.create_whitener(4.0, 3.0)

    @override
    def forward(self, x: Tensor, positions: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return (N, T, D).

        :param x: The input (N, T, D).
        :param positions: The positional encoding (2 T, P), see :func:`relative_positions`.
        :param padding_mask: True at padded frames (N, T); None if there are none.
        """
        layer_input = x

        # (N, T, D) -> (H, N, T, T)
        weights = self.self_attn_weights(x, positions, padding_mask)

        x = x + self.feed_forward1(x)

        # One draw for all uses of the attention weights, of their own for the rest.
        attending = draw_kept_rows(x, self.attention_skip)

        x = x + keep_rows(self.balancer_na(self.nonlin_attention(x, weights[0])), attending)
        x = x + keep_rows(self.self_attn1(x, weights), attending)
        x = x + keep_rows(self.conv_module1(x, padding_mask), draw_kept_rows(x, self.conv_skip))
        x = x + keep_rows(self.balancer_ff2(self.feed_forward2(x)), draw_kept_rows(x, self.ff2_skip))

        x = self.bypass_mid(layer_input, x)

        x = x + keep_rows(self.self_attn2(x, weights), attending)
        x = x + keep_rows(self.conv_module2(x, padding_mask), draw_kept_rows(x, self.conv_skip))
        x = x + keep_rows(self.balancer_ff3(self.feed_forward3(x)), draw_kept_rows(x, self.ff3_skip))

        x = self.bypass(layer_input, self.norm(self.balancer1(x)))

        return self.whiten(self.balancer2(x))

    if TYPE_CHECKING:
        __call__ = forward

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
from spear_plugin.nn.activations import BiasNorm, SwooshL, SwooshR


class TimeSharedDropout(Module):
    """Dropout of whole channels: every frame of an utterance loses the same ones."""

    def __init__(self, p: float) -> None:
        super().__init__()

        self.p = p

    @override
    def forward(self, x: Tensor) -> Tensor:
        # (N, T, D) -> (N, D, T) -> (N, T, D)
        return F.dropout1d(x.mT, self.p, self.training).mT

    @override
    def extra_repr(self) -> str:
        return f"p={self.p}"

    if TYPE_CHECKING:
        __call__ = forward


class FeedForward(Module):
    def __init__(self, dim: int, inner_dim: int, dropout_p: float) -> None:
        super().__init__()

        self.in_proj = Linear(dim, inner_dim, bias=True)
        self.activation = SwooshL()
        self.dropout = TimeSharedDropout(dropout_p)
        self.out_proj = Linear(inner_dim, dim, bias=True, init_fn=scaled(FEED_FORWARD_SCALE))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(self.activation(self.in_proj(x))))

    if TYPE_CHECKING:
        __call__ = forward


class ConvolutionModule(Module):
    """Gated linear unit, depthwise convolution over time, activation and projection."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()

        self.in_proj = Linear(dim, 2 * dim, bias=True)
        self.depthwise_conv = Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.activation = SwooshR()
        self.out_proj = Linear(dim, dim, bias=True, init_fn=scaled(BRANCH_SCALE))

    @override
    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return (N, T, D) from ``x`` (N, T, D); the convolution sees zeros where ``padding_mask`` (N, T) is True."""
        x = F.glu(self.in_proj(x), dim=-1)

        if padding_mask is not None:
            x = x.masked_fill_(padding_mask[:, :, None], 0.0)

        # (N, T, D) -> (N, D, T) -> (N, T, D)
        x = self._convolve(x.mT).mT

        return self.out_proj(self.activation(x))

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
    """Mixes the input of a module with its output, channel by channel: ``x + (y - x) * bypass_scale``."""

    bypass_scale: Parameter

    def __init__(self, dim: int) -> None:
        super().__init__()

        self.bypass_scale = Parameter(torch.empty(dim))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.constant_(self.bypass_scale, 0.5)

    @override
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + (y - x) * self.bypass_scale

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
    ) -> None:
        super().__init__()

        self.bypass = Bypass(dim)
        self.bypass_mid = Bypass(dim)

        self.self_attn_weights = self_attn_weights
        self.self_attn1, self.self_attn2 = self_attentions
        self.nonlin_attention = nonlin_attention
        self.feed_forward1, self.feed_forward2, self.feed_forward3 = feed_forwards
        self.conv_module1, self.conv_module2 = conv_modules
        self.norm = BiasNorm(dim)

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
        x = x + self.nonlin_attention(x, weights[0])
        x = x + self.self_attn1(x, weights)
        x = x + self.conv_module1(x, padding_mask)
        x = x + self.feed_forward2(x)

        x = self.bypass_mid(layer_input, x)

        x = x + self.self_attn2(x, weights)
        x = x + self.conv_module2(x, padding_mask)
        x = x + self.feed_forward3(x)

        return self.bypass(layer_input, self.norm(x))

    if TYPE_CHECKING:
        __call__ = forward

"""The Transformer of student and teacher, which shows the feed-forward outputs of its layers (SpidR, section 3.1).

What stands for a layer everywhere, as target, as input of a head and as feature, is the output of its feed-forward
network before dropout and residual connection.

Letters: N batch, T frames, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast, final

import torch
from torch import Tensor
from torch.nn import Conv1d, Dropout, LayerNorm, Linear, Module, ModuleList
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention
from typing_extensions import override

from spear_plugin.nn.schedules import draw_uniform


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch; a tuple, in which sharding finds the tensors to prepare the backward pass."""

    last: Tensor
    """(N, T, D), the encoder's output."""

    feedforward: list[Tensor]
    """(N, T, D) of each of the layers that were asked for, the last one last."""


@final
class PositionalConvolution(Module):
    """Convolutions over neighbouring frames that stand in for positions."""

    convs: ModuleList

    def __init__(self, dim: int, kernel_size: int, *, depth: int, num_groups: int) -> None:
        """Create the convolutions.

        Args:
            dim: D.
            kernel_size: Frames that they would see together, shared out among them; each sees at least 3.
            depth: Number of convolutions.
            num_groups: Groups of channels of each.
        """
        super().__init__()
        size = max(3, kernel_size // depth)
        self.convs = ModuleList(Conv1d(dim, dim, size, padding=size // 2, groups=num_groups) for _ in range(depth))

    @override
    def forward(self, x: Tensor, is_valid: Tensor | None) -> Tensor:
        """Return (N, T, D) to add to ``x``; zero where frames are not valid."""
        num_frames = x.size(1)
        for conv in self.convs:
            # (N, T, D) -> (N, D, T); an even kernel gives a frame more
            y = conv(_hide_padding(x, is_valid).transpose(1, 2))[:, :, :num_frames]
            # -> (N, T, D)
            x = gelu(layer_norm(y.transpose(1, 2), (y.size(1),)))
        return _hide_padding(x, is_valid)

    if TYPE_CHECKING:
        __call__ = forward


@final
class SelfAttention(Module):
    """Multi-head attention with one product for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, dropout: float) -> None:
        """Create an attention of ``dim`` channels; ``dropout`` acts on its weights."""
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.xavier_uniform_(self.qkv.weight, gain=0.5**0.5)
        torch.nn.init.xavier_uniform_(self.proj.weight)
        for bias in (self.qkv.bias, self.proj.bias):
            if bias is not None:
                torch.nn.init.zeros_(bias)

    @override
    def forward(self, x: Tensor, is_valid: Tensor | None) -> Tensor:
        """Return (N, T, D); every frame of ``x`` attends to the valid ones."""
        # (N, T, 3 D) -> (3, N, H, T, D / H)
        queries, keys, values = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Without a mask the fastest kernels can be used.
        mask = None if is_valid is None else is_valid[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        # -> (N, T, D)
        z: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return z

    if TYPE_CHECKING:
        __call__ = forward


@final
class FeedForward(Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, inner_dim: int, *, dropout: float) -> None:
        """Create a network from D to ``inner_dim`` to D channels; ``dropout`` acts on the inner ones."""
        super().__init__()
        self.intermediate_dense = Linear(dim, inner_dim)
        self.inner_dropout = Dropout(dropout)
        self.output_dense = Linear(inner_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.intermediate_dense, self.output_dense):
            torch.nn.init.normal_(linear.weight, std=0.02)
            torch.nn.init.zeros_(linear.bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D) for ``x`` (N, T, D)."""
        y: Tensor = self.output_dense(self.inner_dropout(gelu(self.intermediate_dense(x))))
        return y

    if TYPE_CHECKING:
        __call__ = forward


@final
class EncoderLayer(Module):
    """Attention and a feed-forward network, each with a residual connection and a norm."""

    def __init__(
        self, attention: SelfAttention, feed_forward: FeedForward, dim: int, *, dropout: float, layer_norm_first: bool
    ) -> None:
        """Put a layer together.

        Args:
            attention: Named, like all parts, after the authors' checkpoints.
            feed_forward: The network whose output stands for the layer.
            dim: D.
            dropout: On what is added to the residual stream.
            layer_norm_first: Whether norms act on the parts' input or on the residual stream.
        """
        super().__init__()
        self.attention = attention
        self.dropout = Dropout(dropout)
        self.layer_norm = LayerNorm(dim)
        self.feed_forward = feed_forward
        self.final_layer_norm = LayerNorm(dim)
        self.layer_norm_first = layer_norm_first

    @override
    def forward(self, x: Tensor, is_valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the layer's output and the output of its feed-forward network, both (N, T, D)."""
        if self.layer_norm_first:
            x = x + self.dropout(self.attention(self.layer_norm(x), is_valid))
            y = self.feed_forward(self.final_layer_norm(x))
            return x + self.dropout(y), y
        x = self.layer_norm(x + self.dropout(self.attention(x, is_valid)))
        y = self.feed_forward(x)
        return self.final_layer_norm(x + self.dropout(y)), y

    if TYPE_CHECKING:
        __call__ = forward


@final
class SpidrEncoder(Module):
    """Positional convolutions and Transformer layers."""

    layers: ModuleList

    def __init__(
        self,
        pos_conv_embed: PositionalConvolution,
        layers: Sequence[EncoderLayer],
        dim: int,
        *,
        dropout: float,
        layer_drop: float,
        layer_norm_first: bool,
    ) -> None:
        """Put an encoder together.

        Args:
            pos_conv_embed: Its output is added to the input.
            layers: The Transformer layers.
            dim: D.
            dropout: On the input of the first layer.
            layer_drop: Probability of not passing on the output of a layer in training.
            layer_norm_first: Whether the encoder's own norm acts on its output, as layers that normalize first need
                it, or on its input.
        """
        super().__init__()
        self.pos_conv_embed = pos_conv_embed
        self.layer_norm = LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.layers = ModuleList(layers)
        self.layer_drop = layer_drop
        self.layer_norm_first = layer_norm_first

    @override
    def forward(
        self, x: Tensor, is_valid: Tensor | None, *, first_tap: int = 0, num_layers: int | None = None
    ) -> EncoderOutput:
        """Encode a batch.

        Args:
            x: (N, T, D).
            is_valid: (N, T) bool, False on padding; None if there is none.
            first_tap: Index of the first layer that shows its feed-forward output; it does so even if it is dropped.
            num_layers: How many layers, the first ones, are computed; by default all.
        """
        x = x + self.pos_conv_embed(x, is_valid)
        if not self.layer_norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        outputs = []
        for index, layer in enumerate(self.layers[:num_layers]):
            is_dropped = self._drops_layer()
            if is_dropped and index < first_tap:
                continue
            y, feedforward = cast("EncoderLayer", layer)(x, is_valid)
            if not is_dropped:
                x = y
            if index >= first_tap:
                outputs.append(feedforward)
        if self.layer_norm_first:
            x = self.layer_norm(x)
        return EncoderOutput(last=x, feedforward=outputs)

    def _drops_layer(self) -> bool:
        return self.training and self.layer_drop > 0.0 and draw_uniform() < self.layer_drop

    if TYPE_CHECKING:
        __call__ = forward


def _hide_padding(x: Tensor, is_valid: Tensor | None) -> Tensor:
    return x if is_valid is None else x * is_valid[:, :, None]

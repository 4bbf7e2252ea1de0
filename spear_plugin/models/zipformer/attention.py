"""Attention whose weights are computed once in a layer and shared by three modules (Zipformer, section 3.2).

Letters: N batch, T frames, D width, H heads, P width of the positional encoding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from fairseq2.nn import Linear
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from spear_plugin.models.zipformer.initialization import BRANCH_SCALE, scaled
from spear_plugin.models.zipformer.regularization import PLAIN, Regularizers, ramp
from spear_plugin.nn.schedules import draw_uniform

PADDING_SCORE: Final = -1000.0
"""Score of a padded key: its weight becomes exactly 0, and a row without any valid key stays finite."""


def relative_positions(num_frames: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Encode the offsets ``1 - num_frames`` to ``num_frames`` of a key from its query.

    The offset is compressed logarithmically, so that near offsets are told apart best, and mapped to an angle within
    (-pi, pi), of which the columns hold cosines and sines of the multiples; the last column is 1. No value depends on
    ``num_frames``, so the middle rows of a longer table are the table of a shorter sequence.

    :returns: The table (2 T, P) in float32. Row ``r`` belongs to the offset ``r - (T - 1)``.
    """
    offsets = torch.arange(1 - num_frames, num_frames + 1, device=device, dtype=torch.float32)

    knee = math.sqrt(dim)

    compressed = knee * offsets.sign() * ((offsets.abs() + knee).log() - math.log(knee))

    angles = (compressed / (dim / (2.0 * math.pi))).atan()

    # (2 T) -> (2 T, P / 2)
    multiples = angles[:, None] * torch.arange(1, dim // 2 + 1, device=device)

    # (2 T, P / 2) -> (2 T, P / 2, 2) -> (2 T, P)
    table = torch.stack([multiples.cos(), multiples.sin()], dim=-1).flatten(1)

    table[:, -1] = 1.0

    return table


def shift_to_relative(scores: Tensor) -> Tensor:
    """Turn scores by offset (..., T, 2 T) into scores by key (..., T, T), as a view.

    Entry (i, j) of the result is entry (i, T - 1 + j - i) of the input: in memory these lie ``2 T - 1`` apart from one
    row to the next.
    """
    num_frames = scores.size(-2)

    # (..., T, 2 T) -> (..., T * (2 T - 1))
    flat = scores.flatten(-2).narrow(-1, num_frames - 1, num_frames * (2 * num_frames - 1))

    # (..., T * (2 T - 1)) -> (..., T, 2 T - 1) -> (..., T, T)
    return torch.unflatten(flat, -1, (num_frames, 2 * num_frames - 1))[..., :num_frames]


class RelativeAttentionWeights(Module):
    """Computes the attention weights of a layer from its input.

    score(i, j) = q_i . k_j + p_i . (W e(j - i)), with e the encoding of :func:`relative_positions`. There is no
    division by the square root of the head width; the initial scale of the projection accounts for it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
        pos_dim: int,
        regularizers: Regularizers = PLAIN,
    ) -> None:
        super().__init__()

        self.num_heads = num_heads
        self.split_sizes = [num_heads * query_head_dim] * 2 + [num_heads * pos_head_dim]

        self.in_proj = Linear(dim, sum(self.split_sizes), bias=True, init_fn=scaled(query_head_dim**-0.25))
        self.linear_pos = Linear(pos_dim, num_heads * pos_head_dim, bias=False, init_fn=scaled(0.05))

        self.balance_keys = regularizers.create_balancer((0.4, 0.6), (0.0, 100.0), probability=0.025)
        self.whiten_keys = regularizers.create_whitener(3.0, 2.0, grad_scale=0.025, num_groups=num_heads)
        self.position_skip = regularizers.create_position_skip()
        self.score_penalty = regularizers.create_score_penalty()

    @override
    def forward(self, x: Tensor, positions: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Return the weights (H, N, T, T), each row a distribution over the valid keys.

        :param x: The input (N, T, D).
        :param positions: The table (2 T, P) of :func:`relative_positions`.
        :param padding_mask: True at padded frames (N, T); None if there are none.
        """
        batch_size, num_frames, _ = x.shape

        queries, keys, pos_queries = torch.split(self.in_proj(x), self.split_sizes, dim=-1)

        keys = self.whiten_keys(self.balance_keys(keys))

        # (N, T, H * q) -> (H * N, T, q)
        queries = split_heads(queries, self.num_heads).flatten(0, 1)
        keys = split_heads(keys, self.num_heads).flatten(0, 1)

        if self._skips_positions():
            # A gradient of zero: data parallelism takes a parameter without gradient for an error.
            scores = (queries + 0.0 * self.linear_pos.weight.sum()).bmm(keys.transpose(1, 2))
        else:
            scores = torch.baddbmm(self._score_positions(pos_queries, positions), queries, keys.transpose(1, 2))

        # (H * N, T, T) -> (H, N, T, T)
        scores = self.score_penalty(scores.view(self.num_heads, batch_size, num_frames, num_frames))

        if padding_mask is not None:
            scores = scores.masked_fill_(padding_mask[:, None, :], PADDING_SCORE)

        softmax_dtype = torch.promote_types(scores.dtype, torch.float32)

        return scores.softmax(dim=-1, dtype=softmax_dtype).type_as(scores)

    def _skips_positions(self) -> bool:
        p = self.position_skip.value

        return p > 0.0 and draw_uniform() < p

    def _score_positions(self, pos_queries: Tensor, positions: Tensor) -> Tensor:
        """Return (H * N, T, T) from positional queries (N, T, H * p) and the table (2 T, P)."""
        num_frames = pos_queries.size(1)

        # (2 T, P) -> (2 T, H * p) -> (H, p, 2 T)
        pos_keys = torch.unflatten(self.linear_pos(positions), -1, (self.num_heads, -1)).permute(1, 2, 0)

        # (N, T, H * p) -> (H, N * T, p)
        pos_queries = torch.unflatten(pos_queries.flatten(0, 1), -1, (self.num_heads, -1)).transpose(0, 1)

        # (H, N * T, 2 T) -> (H * N, T, T)
        return shift_to_relative(pos_queries.bmm(pos_keys).view(-1, num_frames, 2 * num_frames))

    if TYPE_CHECKING:
        __call__ = forward


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, T, H * d) -> (H, N, T, d)."""
    return torch.unflatten(x, -1, (num_heads, -1)).permute(2, 0, 1, 3)


class SelfAttention(Module):
    """Averages projected values over time with given attention weights."""

    def __init__(self, dim: int, num_heads: int, value_head_dim: int, regularizers: Regularizers = PLAIN) -> None:
        super().__init__()

        self.num_heads = num_heads

        self.in_proj = Linear(dim, num_heads * value_head_dim, bias=True)
        self.out_proj = Linear(num_heads * value_head_dim, dim, bias=True, init_fn=scaled(BRANCH_SCALE))
        self.whiten = regularizers.create_whitener(7.5, 3.0)

    @override
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return (N, T, D) from ``x`` (N, T, D) and the attention weights (H, N, T, T)."""
        # (N, T, H * v) -> (H, N, T, v)
        values = split_heads(self.in_proj(x), self.num_heads)

        # (H, N, T, v) -> (N, T, H, v) -> (N, T, H * v)
        values = weights.matmul(values).permute(1, 2, 0, 3).flatten(2)

        return self.whiten(self.out_proj(values))

    if TYPE_CHECKING:
        __call__ = forward


class NonlinearAttention(Module):
    """Averages gated features over time with the weights of one head, and gates the result (Zipformer, figure 3)."""

    def __init__(self, dim: int, inner_dim: int, regularizers: Regularizers = PLAIN) -> None:
        super().__init__()

        self.in_proj = Linear(dim, 3 * inner_dim, bias=True)
        self.out_proj = Linear(inner_dim, dim, bias=True, init_fn=scaled(BRANCH_SCALE))

        self.balancer = regularizers.create_balancer((ramp(0.25, 0.05), ramp(0.75, 0.95)), (0.5, 5.0))
        self.whiten1 = regularizers.create_whitener(5.0, 2.0)
        self.whiten2 = regularizers.create_whitener(5.0, 3.0)

    @override
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return (N, T, D) from ``x`` (N, T, D) and the attention weights (N, T, T) of one head."""
        gates, values, out_gates = self.in_proj(x).chunk(3, dim=-1)

        values = weights.bmm(self.whiten1(values) * self.balancer(gates).tanh())

        return self.whiten2(self.out_proj(values * out_gates))

    if TYPE_CHECKING:
        __call__ = forward

"""A strided convolution over time as matrix products, for CPUs.

Kernels of SpidR's front end have up to two strides. Frames lie one after another, (T, C), so the first ``stride`` taps
of all kernels read consecutive memory, and so do the others: two matrix products without a copy. PyTorch's own
convolution wants (C, T) and the norm after it (T, C); turning between them takes as long as the products.

Letters: N batch, T frames, C and D channels before and after, K kernel, S stride.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv1d
from typing_extensions import override


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Return the convolution (N, T', D) of ``x`` (N, T, C) with ``weight`` (D, C, K), without padding.

    T' is floor((T - K) / S) + 1. Equal to ``conv1d`` up to rounding.
    """
    kernel_size = weight.size(2)
    is_plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if is_plain or not stride <= kernel_size <= 2 * stride or x.size(1) < kernel_size:
        # (N, T, C) -> (N, C, T) -> (N, T', D)
        return conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    y: Tensor = _StridedConvolution.apply(x.contiguous(), weight, stride)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


class _StridedConvolution(Function):
    """Rows of the batch one by one: a product of all of them would copy what is a view of a single one."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        taps = _order_taps(weight)
        y = x.new_empty(x.size(0), num_outputs(x, weight, stride), weight.size(0))
        for out, row in zip(y, x, strict=True):
            early, late = _split_taps(row, len(out), weight, stride)
            torch.mm(early, taps[: early.size(1)], out=out)
            if late is not None:
                out.addmm_(late, taps[early.size(1) :])
        return y

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        taps = _order_taps(weight)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_taps = torch.zeros_like(taps)
        for n, grad_row in enumerate(grad):
            pieces = _split_taps(x[n], len(grad_row), weight, ctx.stride)
            outputs = _split_taps(grad_x[n], len(grad_row), weight, ctx.stride) if grad_x is not None else (None, None)
            first = 0
            for piece, out in zip(pieces, outputs, strict=True):
                if piece is None:
                    continue
                rows = slice(first, first + piece.size(1))
                grad_taps[rows].addmm_(piece.t(), grad_row)
                if out is not None:
                    out.addmm_(grad_row, taps[rows].t())
                first = rows.stop
        # (K C, D) -> (D, C, K)
        grad_weight = grad_taps.view(weight.size(2), weight.size(1), weight.size(0)).permute(2, 1, 0)
        return grad_x, grad_weight, None


def num_outputs(x: Tensor, weight: Tensor, stride: int) -> int:
    """Return T' for ``x`` (N, T, C) and ``weight`` (D, C, K)."""
    return (x.size(1) - weight.size(2)) // stride + 1


def _order_taps(weight: Tensor) -> Tensor:
    """Return the weight (D, C, K) as (K C, D), the order in which taps and channels lie in memory."""
    return weight.permute(2, 1, 0).reshape(-1, weight.size(0))


def _split_taps(row: Tensor, num_out: int, weight: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
    """Return views of ``row`` (T, C): of each output frame the first S taps (T', S C), and the others, if any."""
    num_channels, kernel_size = weight.shape[1:]
    hop = stride * num_channels
    early = row.as_strided((num_out, hop), (hop, 1))
    if kernel_size == stride:
        return early, None
    size = (num_out, (kernel_size - stride) * num_channels)
    return early, row.as_strided(size, (hop, 1), row.storage_offset() + hop)

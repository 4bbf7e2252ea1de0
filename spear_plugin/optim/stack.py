"""ScaledAdam's update of tensors of one shape.

Letters: N tensors, E elements of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, final

import torch
from torch import Tensor

from spear_plugin.optim.config import ScaledAdamOptions

MAX_STACK_ELEMENTS: Final = 2**24
"""Of a stack on a device that pays for each kernel it starts; bounds temporary memory to 350 MB."""

MAX_BLOCK_ELEMENTS: Final = 2**16
"""What a CPU updates at a time: gradients, state and temporary tensors of so many elements fit into its second cache, so
the main memory is read and written once, and not for every operation."""


@final
class TensorStack:
    """Tensors of one shape and their state, one tensor a row."""

    def __init__(self, params: list[Tensor], states: list[dict[str, Tensor]], size_update_period: int) -> None:
        self.params = params
        self.num_elements = params[0].numel()

        for param, state in zip(params, states, strict=True):
            if not state:
                state.update(self._create_state(param, size_update_period))

        delta = _adopt(states, "delta")
        self._shaped_delta = delta
        # (N, *) -> (N, E)
        self.delta = delta.view(len(params), -1)
        self.exp_avg_sq = _adopt(states, "exp_avg_sq").view(len(params), -1)

        if self.num_elements > 1:
            self.rms = _adopt(states, "rms")
            self.scale_grads = _adopt(states, "scale_grads")
            self.scale_exp_avg_sq = _adopt(states, "scale_exp_avg_sq")
        else:
            # A single element has no size: its gradient counts as it is.
            self.rms = params[0].new_ones(len(params))

    def _create_state(self, param: Tensor, size_update_period: int) -> dict[str, Tensor]:
        state = {"delta": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        if self.num_elements > 1:
            state["rms"] = torch.linalg.vector_norm(param) / math.sqrt(self.num_elements)
            state["scale_grads"] = param.new_zeros(size_update_period)
            state["scale_exp_avg_sq"] = param.new_zeros(())

        return state

    def update(self, grads: Sequence[Tensor], factor: Tensor, options: ScaledAdamOptions, step: int) -> None:
        """Move the parameters by one step.

        Args:
            grads: The gradient of each tensor; left as it is.
            factor: () for all gradients; where it is 0 they count as zero, even if they are undefined.
            options: The options of the group.
            step: Steps done before.
        """
        # N tensors of shape (*) -> (N, E)
        params, rows = _as_rows(self.params), _as_rows(grads)

        change = None
        if self.num_elements > 1:
            change = self._update_size(params, rows, factor, options, step)
        else:
            params.clamp_(-options.scalar_max, options.scalar_max)

        for block in self._blocks():
            part = change if change is None else params[:, block] * change
            self._update_delta(block, _scaled(rows[:, block], factor), part, options, step)
            params[:, block].add_(self.delta[:, block])

        if not _is_view(params, self.params):
            # (N, E) -> N tensors of shape (*)
            torch._foreach_copy_(self.params, list(params.view_as(self._shaped_delta).unbind()))

    def _update_delta(
        self, block: slice, grads: Tensor, change: Tensor | None, options: ScaledAdamOptions, step: int
    ) -> None:
        """Compute the update of some columns.

        Args:
            block: The columns, B of them.
            grads: (N, B) after clipping; overwritten.
            change: (N, B) the change of size, where there is one.
            options: The options of the group.
            step: Steps done before.
        """
        beta1, beta2 = options.betas
        lr = options.lr
        delta, exp_avg_sq = self.delta[:, block], self.exp_avg_sq[:, block]

        delta.mul_(beta1)
        if change is not None:
            delta.add_(change, alpha=1.0 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1.0 - beta2)
        correction = 1.0 - beta2 ** (step + 1)
        if self.num_elements > 1:
            if correction >= 0.99:
                correction = 1.0
            grads.mul_(self.rms.clamp(min=options.param_min_rms)[:, None])
        else:
            lr *= options.scalar_lr_scale

        # g / (sqrt(v / k) + eps), with sqrt(k) moved to the numbers: one pass less
        root = math.sqrt(correction)
        delta.addcdiv_(grads, exp_avg_sq.sqrt().add_(options.eps * root), value=-lr * (1.0 - beta1) * root)

    def _update_size(
        self, params: Tensor, grads: Tensor, factor: Tensor, options: ScaledAdamOptions, step: int
    ) -> Tensor | None:
        """Record the products of parameters and gradients; once a period, return the change of size.

        Args:
            params: (N, E).
            grads: (N, E) before clipping.
            factor: () for all gradients.
            options: The options of the group.
            step: Steps done before.

        Returns:
            (N, 1) the factor on the parameters that gives the change.
        """
        period = options.size_update_period
        column = step % period
        products = torch.stack([(params[:, block] * grads[:, block]).sum(1) for block in self._blocks()]).sum(0)
        self.scale_grads[:, column] = _scaled(products, factor)
        if column != period - 1:
            return None

        # One number for each tensor from here on.
        torch.linalg.vector_norm(params, dim=1, out=self.rms).div_(math.sqrt(self.num_elements))
        beta2 = options.betas[1] ** period
        self.scale_exp_avg_sq.mul_(beta2).add_(self.scale_grads.square().mean(1), alpha=1.0 - beta2)
        # Multiplied by the root of the correction and not divided: sizes start to move slowly.
        lr = options.scalar_lr_scale * options.lr * math.sqrt(1.0 - beta2 ** ((step + 1) // period))
        change = self.scale_grads.sum(1).div_(self.scale_exp_avg_sq.sqrt().add_(options.eps)).mul_(-lr)
        change = torch.where(self.rms < options.param_min_rms, 0.0, change)

        return torch.minimum(change, (options.param_max_rms - self.rms) / self.rms)[:, None]

    def _blocks(self) -> Iterator[slice]:
        """Yield the columns that are updated together."""
        size = max(1, MAX_BLOCK_ELEMENTS // len(self.params)) if self.delta.device.type == "cpu" else self.num_elements
        yield from (slice(start, start + size) for start in range(0, self.num_elements, size))


def max_stack_elements(device: torch.device) -> int:
    """Return how many elements a stack should have at most, unless a single tensor has more."""
    return MAX_BLOCK_ELEMENTS if device.type == "cpu" else MAX_STACK_ELEMENTS


def _as_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape (*) as (N, E): a view of a single one, if its layout allows it, or else a copy."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return tensors[0].view(1, -1)

    return torch.stack(list(tensors)).reshape(len(tensors), -1)


def _is_view(rows: Tensor, tensors: Sequence[Tensor]) -> bool:
    return rows.data_ptr() == tensors[0].data_ptr()


def _scaled(grads: Tensor, factor: Tensor) -> Tensor:
    """Return gradients by ``factor``; what is not finite, which only happens where that is 0, becomes 0."""
    return grads.nan_to_num(0.0, 0.0, 0.0).mul_(factor)


def _adopt(states: list[dict[str, Tensor]], name: str) -> Tensor:
    """Stack an entry of the states, put views of the stack in its place, and return the stack."""
    # Stacking may keep the order of dimensions in memory that convolutions prefer.
    stack = torch.stack([state[name] for state in states]).contiguous()
    for state, row in zip(states, stack, strict=True):
        state[name] = row

    return stack

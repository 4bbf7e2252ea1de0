"""ScaledAdam's update of tensors of one shape.

Letters: N tensors, E elements of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, final

import torch
from torch import Tensor

from spear_plugin.optim.config import ScaledAdamOptions

MAX_STACK_ELEMENTS: Final = 2**24
"""Of a stack on a device that pays for each kernel it starts; bounds temporary memory to 350 MB."""

MAX_BLOCK_ELEMENTS: Final = 2**17
"""What a CPU updates at a time: gradients and state of so many elements fit into its caches, so the main memory is read
and written once, and not for every operation."""


@final
class TensorStack:
    """Tensors of one shape and their state, one tensor a row."""

    def __init__(self, params: list[Tensor], states: list[dict[str, Tensor]], size_update_period: int) -> None:
        self.params = params
        self.num_elements = params[0].numel()
        # Columns that are updated together.
        self._block_size = max(1, MAX_BLOCK_ELEMENTS // len(params)) if is_readable(params[0]) else self.num_elements

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

        blocks = [tensor.split(self._block_size, dim=1) for tensor in (params, rows, self.delta, self.exp_avg_sq)]
        is_clipped = not is_readable(factor) or factor.item() != 1.0
        for param, grad, delta, exp_avg_sq in zip(*blocks, strict=True):
            delta.mul_(options.betas[0])
            if change is not None:
                delta.addcmul_(param, change, value=1.0 - options.betas[0])
            self._add_gradient(delta, exp_avg_sq, _scaled(grad, factor) if is_clipped else grad, options, step)
            param.add_(delta)

        if not _is_view(params, self.params):
            # (N, E) -> N tensors of shape (*)
            torch._foreach_copy_(self.params, list(params.view_as(self._shaped_delta).unbind()))

    def _add_gradient(
        self, delta: Tensor, exp_avg_sq: Tensor, grads: Tensor, options: ScaledAdamOptions, step: int
    ) -> None:
        """Update the mean square of some columns, B of them, and add the normalised gradient to their update.

        Args:
            delta: (N, B).
            exp_avg_sq: (N, B).
            grads: (N, B) after clipping.
            options: The options of the group.
            step: Steps done before.
        """
        beta1, beta2 = options.betas
        lr = (1.0 - beta1) * options.lr
        correction = 1.0 - beta2 ** (step + 1)
        if self.num_elements == 1:
            lr *= options.scalar_lr_scale
        elif correction >= 0.99:
            correction = 1.0
        sizes = self.rms.clamp(min=options.param_min_rms)[:, None] if self.num_elements > 1 else self.rms[:, None]

        if len(self.params) == 1 and is_readable(grads):
            # Adam without momentum. Its "parameter" is our update, and its first moment is the gradient once more.
            steps = torch.tensor(step + 1.0 if correction < 1.0 else math.inf)
            torch._fused_adam_(
                [delta], [grads], [grads], [exp_avg_sq], [], [steps], lr=lr * sizes.item(), beta1=0.0, beta2=beta2,
                weight_decay=0.0, eps=options.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
            return

        exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1.0 - beta2)
        # g / (sqrt(v / k) + eps), with sqrt(k) moved to the numbers: one pass less
        root = math.sqrt(correction)
        delta.addcdiv_(grads * sizes, exp_avg_sq.sqrt().add_(options.eps * root), value=-lr * root)

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
        blocks = [tensor.split(self._block_size, dim=1) for tensor in (params, grads)]
        products = torch.stack([_row_products(*block) for block in zip(*blocks, strict=True)]).sum(0)
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


def max_stack_elements(like: Tensor) -> int:
    """Return how many elements a stack should have at most, unless a single tensor has more."""
    return MAX_BLOCK_ELEMENTS if is_readable(like) else MAX_STACK_ELEMENTS


def is_readable(x: Tensor) -> bool:
    """Return whether the host may look at a value without waiting for a device."""
    return x.device.type == "cpu"


def _as_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape (*) as (N, E): a view of a single one, if its layout allows it, or else a copy."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return tensors[0].view(1, -1)

    return torch.stack(list(tensors)).reshape(len(tensors), -1)


def _is_view(rows: Tensor, tensors: Sequence[Tensor]) -> bool:
    return rows.data_ptr() == tensors[0].data_ptr()


def _row_products(params: Tensor, grads: Tensor) -> Tensor:
    """Return (N) the sums of the products of each row."""
    return torch.dot(params[0], grads[0])[None] if len(params) == 1 else (params * grads).sum(1)


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

"""ScaledAdam's update of tensors of one shape.

Letters: N tensors, E elements of each.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from spear_plugin.optim.config import ScaledAdamOptions


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
        self.deltas = list(delta.unbind())
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

    def update(self, grads: Tensor, options: ScaledAdamOptions, step: int) -> None:
        """Move the parameters by one step.

        Args:
            grads: (N, E) after clipping; overwritten.
            options: The options of the group.
            step: Steps done before.
        """
        beta1, beta2 = options.betas
        lr = options.lr

        # N tensors of shape (*) -> (N, E)
        scratch = torch.stack(self.params).reshape(len(self.params), -1)

        self.delta.mul_(beta1)
        if self.num_elements > 1:
            self._update_size(scratch, grads, options, step)

        self.exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1.0 - beta2)
        correction = 1.0 - beta2 ** (step + 1)
        if self.num_elements > 1:
            if correction >= 0.99:
                correction = 1.0
            grads.mul_(self.rms.clamp(min=options.param_min_rms)[:, None])
        else:
            lr *= options.scalar_lr_scale

        # g / (sqrt(v / k) + eps), with sqrt(k) moved to the numbers: one pass less
        root = math.sqrt(correction)
        denominator = torch.sqrt(self.exp_avg_sq, out=scratch).add_(options.eps * root)
        self.delta.addcdiv_(grads, denominator, value=-lr * (1.0 - beta1) * root)

        if self.num_elements == 1:
            torch._foreach_clamp_min_(self.params, -options.scalar_max)
            torch._foreach_clamp_max_(self.params, options.scalar_max)
        torch._foreach_add_(self.params, self.deltas)

    def _update_size(self, params: Tensor, grads: Tensor, options: ScaledAdamOptions, step: int) -> None:
        """Record the products of parameters and gradients; once a period, add the change of size to the update.

        Args:
            params: (N, E); overwritten.
            grads: (N, E).
            options: The options of the group.
            step: Steps done before.
        """
        period = options.size_update_period
        column = step % period
        is_last = column == period - 1
        # On the CPU fresh memory for the products costs as much as another pass.
        products = params * grads if is_last else params.mul_(grads)
        self.scale_grads[:, column] = products.sum(1)
        if not is_last:
            return

        # One number for each tensor from here on.
        torch.linalg.vector_norm(params, dim=1, out=self.rms).div_(math.sqrt(self.num_elements))
        beta2 = options.betas[1] ** period
        self.scale_exp_avg_sq.mul_(beta2).add_(self.scale_grads.square().mean(1), alpha=1.0 - beta2)
        # Multiplied by the root of the correction and not divided: sizes start to move slowly.
        lr = options.scalar_lr_scale * options.lr * math.sqrt(1.0 - beta2 ** ((step + 1) // period))
        change = self.scale_grads.sum(1).div_(self.scale_exp_avg_sq.sqrt().add_(options.eps)).mul_(-lr)
        change = torch.where(self.rms < options.param_min_rms, 0.0, change)
        change = torch.minimum(change, (options.param_max_rms - self.rms) / self.rms)
        self.delta.addcmul_(params, change[:, None], value=1.0 - options.betas[0])


def _adopt(states: list[dict[str, Tensor]], name: str) -> Tensor:
    """Stack an entry of the states, put views of the stack in its place, and return the stack."""
    # Stacking may keep the order of dimensions in memory that convolutions prefer.
    stack = torch.stack([state[name] for state in states]).contiguous()
    for state, row in zip(states, stack, strict=True):
        state[name] = row

    return stack

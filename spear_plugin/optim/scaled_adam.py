"""ScaledAdam: Adam whose steps are relative to the size of each tensor, which it also learns.

The size of a tensor is its root mean square (RMS). Each tensor moves along its normalised gradient in proportion to its
size, and every few steps along itself (growing or shrinking), driven by the summed products of parameter and gradient.
Gradients are scaled down where their norm, weighted by the sizes, exceeds a multiple of its recent median.

Source: the optimizer that SPEAR was trained with, written from its mathematical description. Deliberate differences:

* If the norm of the gradients is infinite or undefined, all gradients of the group count as zero, from the first step
  on; the source lets undefined ones through into its state.
* Parameters that do not require a gradient are left alone; the source may shrink them to ``param_max_rms``.

Letters: M tensors of a group, N of them of one shape, E elements of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, final, overload

import torch
from fairseq2.error import NotSupportedError
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from spear_plugin.optim.config import ScaledAdamOptions
from spear_plugin.optim.stack import TensorStack, max_stack_elements

SHARDED_MESSAGE: Final = (
    "ScaledAdam needs whole tensors, but the parameters are sharded. Set `trainer.data_parallelism` to 'ddp'."
)


@final
class ScaledAdam(Optimizer):
    """Updates parameters (float32) in stacks of equal shape, without waiting for the device.

    ``state[p]`` holds ``delta`` (last update), ``exp_avg_sq``, and for more than one element ``rms``, ``scale_grads``
    (products of parameter and gradient in the last ``size_update_period`` steps) and ``scale_exp_avg_sq``; they are
    views of the stacks. Each entry of ``param_groups`` holds, beside its options, ``step`` (steps done), ``grad_norms``
    (the last ``clipping_update_period``) and ``clipping_threshold``.
    """

    def __init__(self, params: ParamsT, options: ScaledAdamOptions | None = None) -> None:
        """Initialize the optimizer.

        Args:
            params: Parameters, or groups of them with options of their own.
            options: Options of all groups that have no own.

        Raises:
            ValueError: If an option is out of range.
            NotSupportedError: If a parameter is sharded or not in float32 (or float64).
        """
        self._layouts: dict[int, _Layout] = {}
        options = options or ScaledAdamOptions()

        super().__init__(params, {f.name: getattr(options, f.name) for f in fields(ScaledAdamOptions)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)

        # Called after loading and copying, when `state` holds tensors that belong to no stack.
        self._layouts = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)

        group = self.param_groups[-1]
        try:
            _check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        group.setdefault("step", 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            if missing := sorted(self.defaults.keys() - group.keys()):
                raise ValueError(f"`state_dict` must be a state of ScaledAdam, but has no {', '.join(missing)}.")

        super().load_state_dict(state_dict)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for index, group in enumerate(self.param_groups):
            layout = self._prepare_layout(index, group)
            if layout.stacks:
                _update_group(group, layout)

        return loss

    def _prepare_layout(self, index: int, group: dict[str, Any]) -> _Layout:
        params = [p for p in group["params"] if p.requires_grad and p.numel() > 0]

        layout = self._layouts.get(index)
        if layout is None or not layout.holds(params):
            layout = self._layouts[index] = _Layout(params, self.state, group)

        return layout


@final
class _Layout:
    """The stacks of a parameter group."""

    def __init__(self, params: Sequence[Tensor], state: dict[Tensor, dict[str, Tensor]], group: dict[str, Any]) -> None:
        self._ids = [id(param) for param in params]

        by_shape: dict[torch.Size, list[Tensor]] = {}
        for param in params:
            by_shape.setdefault(param.shape, []).append(param)

        self.stacks: list[TensorStack] = []
        for shape, members in by_shape.items():
            size = max(1, max_stack_elements(members[0]) // shape.numel())
            for start in range(0, len(members), size):
                stack = members[start : start + size]
                self.stacks.append(TensorStack(stack, [state[p] for p in stack], group["size_update_period"]))

        if params:
            self._prepare_statistics(group, params[0])

    def _prepare_statistics(self, group: dict[str, Any], like: Tensor) -> None:
        """Create the group's statistics, or bring those of a checkpoint to the parameters' device."""
        if "grad_norms" not in group:
            group["grad_norms"] = like.new_zeros(group["clipping_update_period"])
            group["clipping_threshold"] = like.new_full((), math.inf)
        for name in ("grad_norms", "clipping_threshold"):
            group[name] = group[name].to(like)

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Tell whether these are still the parameters to update: some may have been frozen or thawed."""
        return self._ids == [id(param) for param in params]

    def gather_grads(self) -> list[list[Tensor]]:
        """Return the gradients of each stack; a missing one is zero."""
        return [[p.grad if p.grad is not None else torch.zeros_like(p) for p in s.params] for s in self.stacks]

    def measure_norm(self, grads: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return () the norm of all gradients, each weighted by the size of its tensor."""
        # (M), one pass over the gradients
        norms = torch.stack(list(torch._foreach_norm([grad for members in grads for grad in members])))
        sizes = torch.cat([stack.rms for stack in self.stacks])

        norm: Tensor = torch.linalg.vector_norm(norms.mul_(sizes))

        return norm


def _update_group(group: dict[str, Any], layout: _Layout) -> None:
    options = ScaledAdamOptions(**{f.name: group[f.name] for f in fields(ScaledAdamOptions)})
    step: int = group["step"]

    grads = layout.gather_grads()
    norm = layout.measure_norm(grads)
    factor = torch.where(norm.isfinite(), _clipping_factor(group, options, norm, step), 0.0)

    for stack, members in zip(layout.stacks, grads, strict=True):
        stack.update(members, factor, options, step)

    group["step"] = step + 1


def _clipping_factor(group: dict[str, Any], options: ScaledAdamOptions, norm: Tensor, step: int) -> Tensor:
    """Record the norm and return () the factor for the gradients."""
    if options.clipping_scale is None or step == 0:  # before the first step sizes are those of initialization
        return torch.ones_like(norm)

    period = options.clipping_update_period
    column = step % period
    norms: Tensor = group["grad_norms"]
    threshold: Tensor = group["clipping_threshold"]

    is_zero = norm == 0.0
    # An undefined norm is recorded as a large one, so that the median stays defined.
    norm = norm.nan_to_num(nan=math.inf, posinf=math.inf)
    norms[column] = torch.where(is_zero, norms[column], norm)
    if column == 0:
        ordered = norms.sort().values
        median = ordered[2 * (period // 4)]
        median = torch.where(median == 0.0, ordered[-1], median)
        threshold.copy_(torch.where(is_zero, threshold, options.clipping_scale * median))
    if step < period:
        return torch.ones_like(norm)

    return (threshold / (norm + 1e-20)).clamp(max=1.0)


def _check_group(group: Mapping[str, Any]) -> None:
    result = ScaledAdamOptions(**{f.name: group[f.name] for f in fields(ScaledAdamOptions)}).validate()
    if result.has_error():
        raise ValueError(str(result))

    for param in group["params"]:
        if isinstance(param, DTensor):
            raise NotSupportedError(SHARDED_MESSAGE)
        if param.dtype not in (torch.float32, torch.float64):
            raise NotSupportedError(
                f"ScaledAdam needs parameters in float32, but found {param.dtype}. Set `model.dtype` to 'float32', and "
                "`trainer.mixed_precision.mode` to 'auto' for half precision."
            )
    if len({(param.dtype, param.device) for param in group["params"]}) > 1:
        raise NotSupportedError("ScaledAdam needs all parameters of a group on one device and of one data type.")

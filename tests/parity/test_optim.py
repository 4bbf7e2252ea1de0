"""ScaledAdam and Eden against the authors' code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from spear_plugin.optim import EdenLR, ScaledAdam, ScaledAdamOptions
from tests.common import GOLDEN_FOLDER, assert_close, load_golden, strip_prefix

NETWORK = load_golden("spear/scaledadam_eden")
GRADS = load_golden("spear/scaledadam_grads")


def describe(name: str) -> Any:
    return json.loads((GOLDEN_FOLDER / "spear" / f"{name}.json").read_text())


def create_eden(base_lrs: Sequence[float], eden: dict[str, float], hours_per_step: float) -> EdenLR:
    groups = [{"params": [Parameter(torch.ones(2))], "lr": lr} for lr in base_lrs]
    return EdenLR(
        torch.optim.SGD(groups),
        decay_steps=eden["lr_batches"],
        decay_hours=eden["lr_epochs"],
        hours_per_step=hours_per_step,
        num_warmup_steps=int(eden["warmup_batches"]),
        warmup_start=eden["warmup_start"],
    )


def run_schedule(scheduler: EdenLR, num_steps: int) -> Tensor:
    """Return (steps, groups) the rates of steps 1, 2, ... as a trainer applies them."""
    lrs = []
    for _ in range(num_steps):
        lrs.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return torch.tensor(lrs, dtype=torch.float64)


def test_rates_of_two_groups_are_equal() -> None:
    description = describe("scaledadam_grads")
    scheduler = create_eden([g["lr"] for g in description["groups"]], description["eden"], hours_per_step=0.02)
    assert_close(run_schedule(scheduler, 260), GRADS["lrs"], atol=0.0, rtol=1e-9)


def test_rates_are_equal_where_the_first_step_is_number_zero() -> None:
    description = describe("scaledadam_eden")
    scheduler = create_eden([description["base_lr"]], description["eden"], hours_per_step=0.05)
    # The golden run counts from 0, a trainer's from 1.
    assert_close(run_schedule(scheduler, 249)[:, 0], NETWORK["lrs"][1:], atol=0.0, rtol=1e-9)


class SuppliedGradients:
    """The golden parameters, moved by the golden gradients."""

    def __init__(self) -> None:
        self.description = describe("scaledadam_grads")
        self.params = {name: Parameter(value.clone()) for name, value in strip_prefix("init.", GRADS).items()}
        groups = [{"params": [self.params[n] for n in g["names"]]} for g in self.description["groups"]]
        self.optimizer = ScaledAdam(groups, ScaledAdamOptions(clipping_scale=self.description["clipping_scale"]))

    def step(self, index: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, GRADS["lrs"][index].tolist(), strict=True):
            group["lr"] = lr
        for name, grads in strip_prefix("grads.", GRADS).items():
            self.params[name].grad = grads[index].clone()
        self.optimizer.step()


def test_parameters_moved_by_supplied_gradients_are_equal() -> None:
    run = SuppliedGradients()
    snapshots = set(run.description["snapshots"])
    for index in range(260):
        run.step(index)
        if index + 1 in snapshots:
            for name, param in run.params.items():
                expected = GRADS[f"after{index + 1}.{name}"]
                # Relative to the tensor: near a change of sign, rounding is all that is left of an element.
                scale = float(expected.abs().max())
                assert_close(param, expected, rtol=0.0, atol=1e-5 * scale, message=f"{name} after {index + 1}")
    assert snapshots == {int(name.removeprefix("after").split(".")[0]) for name in GRADS if name.startswith("after")}


def test_clipping_factors_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    from spear_plugin.optim import scaled_adam  # noqa: PLC0415

    original = scaled_adam._clipping_factor
    factors: list[float] = []

    def record(*args: Any) -> Tensor | None:
        factor = original(*args)
        factors.append(1.0 if factor is None else float(factor))
        return factor

    monkeypatch.setattr(scaled_adam, "_clipping_factor", record)
    run = SuppliedGradients()
    for index in range(260):
        run.step(index)
    actual = torch.tensor(factors, dtype=torch.float64).view(260, 2)[1:]
    expected = GRADS["clip_scale_from_step2"]
    assert (expected < 0.9).any()
    assert_close(actual, expected)


def test_a_network_trained_from_the_same_start_is_equal() -> None:
    description = describe("scaledadam_eden")
    params = {name: Parameter(value.clone()) for name, value in strip_prefix("init.", NETWORK).items()}
    optimizer = ScaledAdam(params.values(), ScaledAdamOptions(clipping_scale=description["clipping_scale"]))
    num_compared = 0
    for index, lr in enumerate(NETWORK["lrs"].tolist()):
        hidden = torch.tanh(torch.nn.functional.linear(NETWORK["xs"][index], params["0.weight"], params["0.bias"]))
        output = torch.nn.functional.linear(hidden, params["2.weight"], params["2.bias"]) * (1 + params["s"])
        ((output - NETWORK["ys"][index]) ** 2).sum().backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        for name, param in params.items():
            if (expected := NETWORK.get(f"after_step{index}.{name}")) is not None:
                num_compared += 1
                scale = float(expected.abs().max())
                assert_close(param, expected, rtol=0.0, atol=1e-5 * scale, message=f"{name} after step {index}")
    assert num_compared >= 5 * len(params)

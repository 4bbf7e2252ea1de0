"""The size of the paper in other precision and with less memory; as slow as its 96 million parameters make it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spear_plugin.models.spear import SpearConfig, apply_ac_to_spear, create_spear_model
from tests.common import assert_equal
from tests.unit.models.spear.makers import create_batch

pytestmark = pytest.mark.slow


def step(*, checkpointing: bool = False, bfloat16: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return loss and gradients of a new model, with all that is random in the middle of its schedules."""
    torch.manual_seed(0)
    model = create_spear_model(SpearConfig())
    model.set_batch_count(1500.0)
    if checkpointing:
        apply_ac_to_spear(model, 1)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = create_batch([16000, 14000]).loss_of(model)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def test_checkpointing_gives_the_same_bits_and_bfloat16_nearly_the_same_loss() -> None:
    loss, gradients = step()
    recomputed_loss, recomputed = step(checkpointing=True)
    assert_equal(recomputed_loss, loss)
    for actual, expected in zip(recomputed, gradients, strict=True):
        assert_equal(actual, expected)

    rounded_loss, rounded = step(bfloat16=True)
    assert rounded_loss != loss
    # 8 bits in each product, rounding errors that are independent of each other, thousands of targets in the mean.
    assert rounded_loss.item() == pytest.approx(loss.item(), rel=1e-3)
    assert all(actual.dtype == torch.float32 and actual.isfinite().all() for actual in rounded)
    assert 0.0 < total_difference(rounded, gradients) < 0.03


def total_difference(a: list[Tensor], b: list[Tensor]) -> float:
    squares = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return math.sqrt(squares / sum(float(y.square().sum()) for y in b))

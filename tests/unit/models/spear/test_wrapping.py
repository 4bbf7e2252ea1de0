"""Wrappers around Zipformer layers: activation checkpointing, sharding, compilation."""

from __future__ import annotations

import pytest
import torch
from fairseq2.error import NotSupportedError
from torch.nn import Module

from spear_plugin.models.spear import apply_ac_to_spear, apply_fsdp_to_spear, compile_spear
from tests.common import assert_equal
from tests.unit.models.spear.makers import create_batch, create_small_model


def test_activation_checkpointing_changes_neither_keys_nor_gradients() -> None:
    # In the middle of all schedules: what is random must be drawn again alike, on the host and on the device.
    batch = create_batch([16000, 9000])
    gradients = []
    for every_nth_layer in (0, 1):
        model = create_small_model()
        model.set_batch_count(1500.0)
        keys = list(model.state_dict())
        if every_nth_layer:
            assert apply_ac_to_spear(model, every_nth_layer) is model
            assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_modules())
        assert list(model.state_dict()) == keys
        torch.manual_seed(1)
        batch.loss_of(model).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_equal(plain, recomputed)


@pytest.mark.parametrize(("granularity", "expected"), [("layer", 3), ("stack", 2)])
def test_all_layers_or_stacks_are_sharded(granularity: str, expected: int) -> None:
    wrapped: list[Module] = []

    def wrap(module: Module, reshard_after_forward: bool | None = None) -> Module:
        wrapped.append(module)
        return module

    model = create_small_model()
    assert apply_fsdp_to_spear(model, granularity, wrap) is model
    assert len(wrapped) == expected
    with pytest.raises(NotSupportedError, match="`granularity` must be 'layer' or 'stack'"):
        apply_fsdp_to_spear(model, "model", wrap)


def test_compilation_is_requested_for_each_layer() -> None:
    model = create_small_model()
    compile_spear(model, backend="eager")
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == [
        "encoder.encoders.0.layers.0",
        "encoder.encoders.1.encoder.layers.0",
        "encoder.encoders.1.encoder.layers.1",
    ]

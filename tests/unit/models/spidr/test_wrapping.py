"""Wrappers around parts of the model: activation checkpointing, sharding, compilation."""

from __future__ import annotations

import pytest
import torch
from fairseq2.error import NotSupportedError
from torch.nn import Module

from spear_plugin.models.spidr import apply_ac_to_spidr, apply_fsdp_to_spidr, compile_spidr
from tests.common import assert_close
from tests.unit.models.spidr.makers import create_batch, create_small_model, small_config


def test_activation_checkpointing_changes_neither_keys_nor_gradients() -> None:
    config = small_config()
    config.encoder.dropout = config.encoder.layer_drop = 0.3
    gradients = []
    for every_nth_layer in (0, 1):
        model = create_small_model(config)
        keys = list(model.state_dict())
        if every_nth_layer:
            assert apply_ac_to_spidr(model, every_nth_layer) is model
            assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_modules())
        assert list(model.state_dict()) == keys
        torch.manual_seed(1)
        create_batch([16000, 9000]).loss_of(model).loss.backward()
        model.update_ema(1)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("layer", [f"{part}.layers.{i}" for part in ("student", "teacher") for i in range(3)]),
        ("stack", ["student", "teacher"]),
    ],
)
def test_student_and_teacher_are_sharded_alike(granularity: str, expected: list[str]) -> None:
    model = create_small_model()
    names = {module: name for name, module in model.named_modules()}
    wrapped = []

    def wrap(module: Module, reshard_after_forward: bool | None = None) -> Module:
        wrapped.append(names[module])
        return module

    assert apply_fsdp_to_spidr(model, granularity, wrap) is model
    assert wrapped == expected
    with pytest.raises(NotSupportedError, match="`granularity` must be 'layer' or 'stack', but is 'model' instead"):
        apply_fsdp_to_spidr(model, "model", wrap)


def test_compilation_is_requested_for_each_part() -> None:
    model = create_small_model()
    compile_spidr(model, backend="eager")
    compiled = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    parts = {
        f"{e}.{part}" for e in ("student", "teacher") for part in ("pos_conv_embed", *(f"layers.{i}" for i in range(3)))
    }
    assert compiled == {"feature_extractor", *parts}

"""Wrappers around Zipformer layers: activation checkpointing, sharding, compilation."""

from __future__ import annotations

import pytest
import torch
from fairseq2.error import NotSupportedError
from torch.nn import Module

from spear_plugin.models.spear import apply_ac_to_spear, apply_fsdp_to_spear, compile_spear
from tests.common import assert_close
from tests.unit.models.spear.makers import create_batch, create_small_model


class RecordingWrapper:
    """Stands for fairseq2's FSDP wrapper and returns modules as they are."""

    def __init__(self) -> None:
        self.wrapped: list[tuple[str, bool | None]] = []

    def __call__(self, module: Module, reshard_after_forward: bool | None = None) -> Module:
        self.wrapped.append((type(module).__name__, reshard_after_forward))
        return module


def test_activation_checkpointing_changes_neither_keys_nor_gradients() -> None:
    batch = create_batch([16000, 9000])
    gradients = []
    for every_nth_layer in (0, 1):
        model = create_small_model()
        keys = list(model.state_dict())
        if every_nth_layer:
            assert apply_ac_to_spear(model, every_nth_layer) is model
            assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_modules())
        assert list(model.state_dict()) == keys
        torch.manual_seed(1)
        batch.loss_of(model).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(plain, recomputed)


def test_layers_or_stacks_are_sharded_and_only_the_last_stays_gathered() -> None:
    for granularity, expected in (
        ("layer", [("ZipformerLayer", None), ("ZipformerLayer", None), ("ZipformerLayer", False)]),
        ("stack", [("ZipformerStack", None), ("DownsampledStack", False)]),
    ):
        wrapper = RecordingWrapper()
        apply_fsdp_to_spear(create_small_model(), granularity, wrapper)
        assert wrapper.wrapped == expected


def test_unknown_granularity_raises_an_error() -> None:
    with pytest.raises(NotSupportedError, match="`granularity` must be 'layer' or 'stack', but is 'head'"):
        apply_fsdp_to_spear(create_small_model(), "head", RecordingWrapper())


def test_compilation_is_requested_for_each_layer() -> None:
    model = create_small_model()
    compile_spear(model, backend="eager")
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == [
        "encoder.encoders.0.layers.0",
        "encoder.encoders.1.encoder.layers.0",
        "encoder.encoders.1.encoder.layers.1",
    ]

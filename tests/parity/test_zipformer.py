"""The authors' forward and gradients, module by module and as a whole; tensors in their (T, N, D) are marked `tnd`."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Module

from spear_plugin.models.zipformer import (
    ConvSubsampling,
    ZipformerConfig,
    ZipformerEncoder,
    create_conv_subsampling,
    create_zipformer,
)
from spear_plugin.models.zipformer.attention import relative_positions
from spear_plugin.models.zipformer.encoder import Downsample, upsample
from spear_plugin.models.zipformer.factory import ZipformerFactory
from spear_plugin.nn.activations import BiasNorm, SwooshL, SwooshR
from tests.common import GOLDEN_FOLDER, assert_close, assert_equal, load_golden, strip_prefix
from tests.parity.common import golden_step_zipformer, with_axes


@pytest.fixture(scope="module")
def modules() -> dict[str, Tensor]:
    return load_golden("spear/modules")


def without_unused(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state_dict.items() if not re.search(r"(^|layers\.\d+\.)bypass_scale$", key)}


def load_models(config: ZipformerConfig, state_dict: dict[str, Tensor]) -> tuple[ConvSubsampling, ZipformerEncoder]:
    front_end, encoder = create_conv_subsampling(config).eval(), create_zipformer(config).eval()

    front_end.load_state_dict(with_axes(strip_prefix("encoder_embed.", state_dict)))
    encoder.load_state_dict(with_axes(without_unused(strip_prefix("encoder.", state_dict))))

    return front_end, encoder


@pytest.mark.parametrize(("name", "activation"), [("L", SwooshL()), ("R", SwooshR())])
def test_swoosh_has_the_authors_values_and_derivatives(
    name: str, activation: Module, modules: dict[str, Tensor]
) -> None:
    x = modules["swoosh.x"].requires_grad_()

    y = activation(x)

    (grad,) = torch.autograd.grad(y.sum(), x)

    assert_close(y, modules[f"swoosh.{name}.y"], atol=1e-6)
    assert_close(grad, modules[f"swoosh.{name}.dy"], atol=1e-6)


@pytest.mark.parametrize("case", ["a", "b_limit_hi", "c_limit_lo"])
def test_bias_norm_has_the_authors_values_and_gradients(case: str, modules: dict[str, Tensor]) -> None:
    golden = strip_prefix(f"biasnorm.{case}.", modules)

    norm = BiasNorm(golden["bias"].numel())
    norm.load_state_dict({"bias": golden["bias"], "log_scale": golden["log_scale"][None]})

    x = golden["x"].requires_grad_()

    y = norm(x)

    torch.autograd.backward(y, golden["gy"])

    assert norm.bias.grad is not None
    assert norm.log_scale.grad is not None
    assert x.grad is not None

    assert_close(y, golden["y"])
    assert_close(x.grad, golden["gx"])
    assert_close(norm.bias.grad, golden["gbias"])
    assert_close(norm.log_scale.grad.squeeze(), golden["glog_scale_no_limit"])


@pytest.mark.parametrize("num_frames", [7, 40])
def test_positional_encoding_equals_the_authors(num_frames: int, modules: dict[str, Tensor]) -> None:
    # Ours has one more row, which only keeps the shift of the scores a plain view.
    assert_close(relative_positions(num_frames, 48)[:-1], modules[f"posenc.T{num_frames}.d48"])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_resampling_has_the_authors_values_and_gradients(factor: int, modules: dict[str, Tensor]) -> None:
    tnd = strip_prefix(f"resample.ds{factor}.", modules)

    downsample = Downsample(factor)
    downsample.load_state_dict({"bias": tnd["bias"]})

    x = tnd["x"].transpose(0, 1).requires_grad_()

    y = downsample(x, None)

    torch.autograd.backward(y, tnd["gy"].transpose(0, 1))

    assert x.grad is not None
    assert downsample.bias.grad is not None

    assert_close(y.transpose(0, 1), tnd["y"])
    assert_close(x.grad.transpose(0, 1), tnd["gx"])
    assert_close(downsample.bias.grad, tnd["gbias"])
    assert_equal(upsample(tnd["y"].transpose(0, 1), factor, len(tnd["upsampled"])).transpose(0, 1), tnd["upsampled"])


def test_front_end_equals_the_authors_on_another_number_of_mels(modules: dict[str, Tensor]) -> None:
    golden = strip_prefix("frontend.", modules)

    front_end = create_conv_subsampling(ZipformerConfig(num_mel_bins=40, encoder_dims=[16] * 7)).eval()
    front_end.load_state_dict(with_axes(strip_prefix("param.", golden)))

    y, lengths = front_end(golden["x"], golden["x_lens"], reference_padding=True)

    assert lengths is not None

    assert_close(y, golden["y"])
    assert_equal(lengths, golden["y_lens"])


def test_each_module_of_a_layer_equals_the_authors(modules: dict[str, Tensor]) -> None:
    tnd = strip_prefix("layer.", modules)

    config = ZipformerConfig(encoder_dims=[32] * 7, num_heads=[4] * 7, feedforward_dims=[64] * 7, kernel_sizes=[15] * 7)

    layer = ZipformerFactory(config).create_layer(0).eval()
    layer.load_state_dict(with_axes(without_unused(strip_prefix("param.", tnd))))

    outputs: dict[str, Tensor] = {}

    for name, module in layer.named_children():
        if f"out.{name}" not in tnd:
            continue  # a rule for gradients

        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))

    positions = torch.cat([tnd["pos_emb"][0], torch.zeros(1, 48)])

    y = layer(tnd["x"].transpose(0, 1), positions, tnd["key_padding_mask"])

    assert_close(outputs.pop("self_attn_weights"), tnd["out.self_attn_weights"])

    assert len(outputs) == 11

    for name, output in outputs.items():
        assert_close(output.transpose(0, 1), tnd[f"out.{name}"], message=name)

    assert_close(y.transpose(0, 1), tnd["y"])


def test_whole_forward_equals_the_authors_padded_frames_included() -> None:
    golden = load_golden("spear/tiny_forward")

    config = ZipformerConfig(
        num_layers=[1, 1, 2, 1, 1, 1, 1], encoder_dims=[64] * 7, feedforward_dims=[96] * 7, num_heads=[4] * 7
    )

    front_end, encoder = load_models(config, strip_prefix("param.", golden))

    with torch.no_grad():
        x, lengths = front_end(golden["fbank"], golden["fbank_lens"], reference_padding=True)
        output = encoder(x, lengths, reference_padding=True)

    assert output.lengths is not None

    assert_close(x, golden["embed"])
    assert_close(output.last, golden["encoder_out"])
    assert_equal(output.lengths, golden["encoder_out_lens"])

    assert len(output.layers) == 8

    for index, layer in enumerate(output.layers):
        assert_close(layer, golden[f"hidden.{index}"], message=f"layer {index}")


def test_forward_with_settings_per_stack_equals_the_authors() -> None:
    golden = load_golden("spear/train_step")

    front_end, encoder = load_models(golden_step_zipformer(), strip_prefix("param.", golden))

    with torch.no_grad():
        x, lengths = front_end(golden["fbank_masked"], golden["fbank_lens"], reference_padding=True)
        output = encoder(x, lengths, reference_padding=True)

    assert_close(output.last, golden["encoder_out_eval_mode"])


def draw_by_rule(key: str, shape: torch.Size) -> Tensor:
    """Return the value of a parameter of the full-size fixtures, which is a function of its released name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"model.model.{key}".encode())))

    x = torch.from_numpy(np.asarray(rng.standard_normal(tuple(shape), dtype=np.float32)))

    if x.ndim >= 2:
        return x * float(np.float32(0.7 / shape[1:].numel() ** 0.5))

    if key.endswith("bypass_scale"):
        return (0.5 + 0.1 * x).clamp(0.1, 0.9)

    return x * (0.1 if key.endswith("downsample.bias") else 0.05)


def test_base_size_equals_the_authors() -> None:
    golden = load_golden("spear/fullsize_base")
    info: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spear/fullsize_base.json").read_text())

    with torch.device("meta"):
        front_end, encoder = create_conv_subsampling(ZipformerConfig()), create_zipformer(ZipformerConfig())

    for prefix, model in (("encoder_embed.", front_end), ("encoder.", encoder)):
        state_dict = {name: draw_by_rule(prefix + name, value.shape) for name, value in model.state_dict().items()}

        model.load_state_dict(state_dict, assign=True)
        model.eval()

        for name, value in state_dict.items():
            checksum = info["param_checksums"].get(f"model.model.{prefix}{name}")

            assert checksum is None or value.double().sum().item() == pytest.approx(checksum[0], abs=1e-3)

    with torch.no_grad():
        x, lengths = front_end(golden["fbank"], golden["fbank_lens"], reference_padding=True)
        output = encoder(x, lengths, reference_padding=True)

    assert output.lengths is not None

    assert_equal(output.lengths, golden["encoder_out_lens"])
    assert_close(output.last[..., :16], golden["encoder_out.first16"], atol=1e-4)

    assert len(output.layers) == info["n_hidden"]

    for index, layer in enumerate([*output.layers, output.last]):
        name = f"hidden.{index}" if index < len(output.layers) else "encoder_out"

        assert_close(layer.mean(dim=-1), golden[f"{name}.mean"], atol=1e-4, message=name)
        assert_close(layer.std(dim=-1, correction=0), golden[f"{name}.std"], atol=1e-4, message=name)

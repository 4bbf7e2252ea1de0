from __future__ import annotations

import pytest
import torch

from spear_plugin.models.zipformer.attention import relative_positions
from spear_plugin.models.zipformer.factory import ZipformerFactory
from spear_plugin.models.zipformer.layer import Bypass, ConvolutionModule, TimeSharedDropout, ZipformerLayer
from tests.common import assert_close, assert_equal
from tests.unit.models.zipformer.makers import SMALL, enlarge_small_parameters


def make_layer() -> ZipformerLayer:
    layer = ZipformerFactory(SMALL).create_layer(0)

    enlarge_small_parameters(layer)

    return layer.eval()


def test_dropout_takes_a_channel_from_all_frames_of_an_utterance_and_keeps_the_mean() -> None:
    y = TimeSharedDropout(0.25)(torch.ones(400, 3, 50))

    assert_equal(y, y[:, :1].expand_as(y))
    assert_close(torch.unique(y), torch.tensor([0.0, 1 / 0.75]))
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_bypass_of_zero_is_the_input_and_of_one_the_output() -> None:
    bypass = Bypass(2)

    with torch.no_grad():
        bypass.bypass_scale.copy_(torch.tensor([0.0, 1.0]))

    x, y = torch.randn(4, 3, 2), torch.randn(4, 3, 2)

    assert_close(bypass(x, y), torch.stack([x[..., 0], y[..., 1]], dim=-1))


def test_convolution_on_the_cpu_equals_the_one_of_the_module_and_its_gradients() -> None:
    module = ConvolutionModule(6, kernel_size=5).double()

    x = torch.randn(2, 6, 11, dtype=torch.float64, requires_grad=True)

    inputs = (x, *module.depthwise_conv.parameters())

    ours, expected = module._convolve(x), module.depthwise_conv(x)

    assert_close(ours, expected)

    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        assert_close(a, b)


def test_all_gradients_of_a_layer_are_those_of_finite_differences() -> None:
    layer = make_layer().double()

    positions = relative_positions(4, SMALL.pos_dim).double()
    padding_mask = torch.tensor([[False] * 4, [False, False, True, True]])

    x = torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: layer(x, positions, padding_mask), x, fast_mode=True)


def test_a_layer_under_bfloat16_autocast_stays_near_float32() -> None:
    layer = make_layer()

    positions = relative_positions(20, SMALL.pos_dim)

    x = torch.randn(2, 20, 16)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, positions, None)

    assert y.dtype == torch.float32
    assert_close(y, layer(x, positions, None), atol=0.1, rtol=0.1)


@pytest.mark.slow  # loading the compiler is
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_layer_gives_the_same_output_and_gradient() -> None:
    layer = make_layer()

    positions = relative_positions(9, SMALL.pos_dim)
    padding_mask = torch.arange(9).expand(2, -1) > 6

    x = torch.randn(2, 9, 16, requires_grad=True)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)

    ours, expected = compiled(x, positions, padding_mask), layer(x, positions, padding_mask)

    assert_close(ours, expected)
    assert_close(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0], atol=1e-4)

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from spear_plugin.nn.activations import BiasNorm, SwooshL, SwooshR
from tests.common import assert_close, assert_equal


@pytest.mark.parametrize("activation", [SwooshL(), SwooshR()])
def test_swoosh_derivative_is_that_of_finite_differences(activation: Module) -> None:
    x = torch.linspace(-12.0, 12.0, 25, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(activation, x)


@pytest.mark.parametrize("activation", [SwooshL(), SwooshR()])
def test_swoosh_stays_finite_far_from_zero(activation: Module) -> None:
    x = torch.tensor([-1e30, -1e4, 1e4, 1e30], requires_grad=True)

    y = activation(x)

    torch.autograd.backward(y.sum())

    assert x.grad is not None
    assert y.isfinite().all()
    assert_close(x.grad, torch.tensor([-0.08, -0.08, 0.92, 0.92]))


@pytest.mark.parametrize("activation", [SwooshL(), SwooshR()])
def test_swoosh_in_bfloat16_rounds_only_the_result(activation: Module) -> None:
    x = torch.linspace(-8.0, 8.0, 100).bfloat16()

    assert_equal(activation(x), activation(x.float()).bfloat16())


def test_swoosh_r_passes_through_zero() -> None:
    assert_close(SwooshR()(torch.zeros(1)), torch.zeros(1), atol=1e-7)


def test_bias_norm_scales_by_the_rms_around_its_bias_and_keeps_the_bias() -> None:
    norm = BiasNorm(16)

    with torch.no_grad():
        norm.bias.normal_()
        norm.log_scale.fill_(0.3)

    x = torch.randn(2, 5, 16)

    expected = x * torch.tensor(0.3).exp() / (x - norm.bias).square().mean(dim=-1, keepdim=True).sqrt()

    assert_close(norm(x), expected)


def test_bias_norm_of_zeros_is_zeros_with_finite_gradients() -> None:
    norm = BiasNorm(16)

    torch.nn.init.zeros_(norm.bias)

    x = torch.randn(2, 5, 16)
    x[0, 2] = 0.0
    x.requires_grad_()

    y = norm(x)

    torch.autograd.backward(y.square().sum() + y.sum())

    assert x.grad is not None
    assert norm.bias.grad is not None
    assert norm.log_scale.grad is not None

    assert_equal(y[0, 2], torch.zeros(16))

    assert x.grad.isfinite().all()
    assert norm.bias.grad.isfinite().all()
    assert norm.log_scale.grad.isfinite()


def test_bias_norm_of_a_bfloat16_input_is_float32_like_its_parameters() -> None:
    # Under autocast the front end's last projection is low precision; from here on the residual stream is not.
    assert BiasNorm(4)(torch.randn(3, 4).bfloat16()).dtype == torch.float32


def draw_projection(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((2, 5, 6), (4, 6), (4,)))
    mask = torch.bernoulli(torch.full((2, 1, 6), 0.5, dtype=dtype), generator=generator) * 2.0
    return (3.0 * x).requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), mask


@pytest.mark.parametrize("activation", [SwooshL(), SwooshR()])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_projected_activation_is_a_linear_layer_on_it(activation: SwooshL | SwooshR, is_masked: bool) -> None:
    x, weight, bias, mask = draw_projection(torch.float64)
    expected = torch.nn.functional.linear(activation(x) * (mask if is_masked else 1.0), weight, bias)
    actual = activation.project(x, weight, bias, mask if is_masked else None)
    assert_close(actual, expected, atol=1e-12)
    grad = torch.randn_like(expected)
    for ours, autograds in zip(
        torch.autograd.grad(actual, (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight, bias), grad),
        strict=True,
    ):
        assert_close(ours, autograds, atol=1e-12)


def test_a_projected_activation_keeps_the_types_of_autocast() -> None:
    x, weight, bias, mask = draw_projection(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = SwooshL().project(x, weight, bias, mask)
        expected = torch.nn.functional.linear(SwooshL()(x) * mask, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    y.float().square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    (autograds,) = torch.autograd.grad(expected.float().square().sum(), weight)
    assert_close(weight.grad, autograds, atol=0.0, rtol=0.02)

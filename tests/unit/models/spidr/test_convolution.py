"""Matrix products against PyTorch's own convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv1d

from spear_plugin.models.spidr.convolution import convolve
from tests.common import assert_close


@pytest.mark.parametrize(("kernel_size", "stride"), [(10, 5), (3, 2), (2, 2), (3, 1), (2, 1), (1, 1), (4, 3)])
@pytest.mark.parametrize("num_frames", [10, 11, 12, 37])
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_are_those_of_a_convolution(
    kernel_size: int, stride: int, num_frames: int, has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(kernel_size * num_frames)
    x = torch.randn(3, num_frames, 6, generator=generator)[:, :, :4].requires_grad_()  # not contiguous
    weight = torch.randn(5, 4, kernel_size, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator, requires_grad=True) if has_bias else None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    y = convolve(x, weight, bias, stride)
    expected = conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    assert y.shape == expected.shape
    assert_close(y, expected)
    direction = torch.randn(y.shape, generator=generator)
    gradients = torch.autograd.grad((y * direction).sum(), inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad((expected * direction).sum(), inputs), strict=True):
        assert_close(gradient, reference)


@pytest.mark.parametrize(("kernel_size", "stride"), [(5, 2), (1, 2)])
def test_other_kernels_work_too(kernel_size: int, stride: int) -> None:
    x, weight = torch.randn(2, 12, 3), torch.randn(4, 3, kernel_size)
    expected = conv1d(x.transpose(1, 2), weight, None, stride).transpose(1, 2)
    assert_close(convolve(x, weight, None, stride), expected)


def test_a_gradient_for_the_weight_alone_is_the_same() -> None:
    x, weight = torch.randn(2, 12, 3), torch.randn(4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(convolve(x, weight, None, 2).square().sum(), weight)
    expected = conv1d(x.transpose(1, 2), weight, None, 2).square().sum()
    assert_close(gradient, torch.autograd.grad(expected, weight)[0], atol=1e-4)

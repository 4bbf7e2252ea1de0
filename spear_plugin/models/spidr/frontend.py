"""From samples to frames: convolutions, and the projection to the encoder's width (SpidR, section 3.1).

Letters: N batch, S samples, T frames, C channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast, final

import torch
from torch import Tensor
from torch.nn import Conv1d, GroupNorm, LayerNorm, Linear, Module, ModuleList
from torch.nn.functional import gelu
from typing_extensions import override

from spear_plugin.models.spidr.convolution import convolve

SAMPLE_RATE: Final = 16_000

STANDARDIZATION_EPSILON: Final = 1e-5

Normalization = Literal["layer_norm", "group_norm", "none"]


def standardize_waveforms(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return whole recordings (N, S) with the mean 0 and the variance 1 each, zero beyond their ``lengths`` (N,).

    This is what the model was trained on; pieces are cut from recordings only afterwards.
    """
    is_valid = torch.arange(waveforms.size(1), device=waveforms.device) < lengths[:, None].to(waveforms.device)
    num_samples = is_valid.sum(dim=1, keepdim=True)
    centred = waveforms - waveforms.where(is_valid, 0.0).sum(dim=1, keepdim=True) / num_samples
    centred = centred.where(is_valid, 0.0)
    variances = centred.square().sum(dim=1, keepdim=True) / num_samples
    return centred * torch.rsqrt(variances + STANDARDIZATION_EPSILON)


@final
class ConvLayer(Module):
    """A convolution without padding, a normalization and an exact GELU."""

    conv: Conv1d
    layer_norm: LayerNorm | GroupNorm | None

    def __init__(
        self,
        num_in_channels: int,
        num_channels: int,
        kernel_size: int,
        stride: int,
        *,
        bias: bool,
        normalization: Normalization,
    ) -> None:
        """Create a layer.

        Args:
            num_in_channels: Channels of the input.
            num_channels: C.
            kernel_size: Width of the kernel.
            stride: Step of the kernel.
            bias: Whether the convolution has a bias.
            normalization: Of the channels of each frame, of each channel over time, or none.
        """
        super().__init__()
        self.conv = Conv1d(num_in_channels, num_channels, kernel_size, stride, bias=bias)
        # Both kinds have the same name, as in the authors' checkpoints.
        self.layer_norm = None
        if normalization == "layer_norm":
            self.layer_norm = LayerNorm(num_channels)
        elif normalization == "group_norm":
            self.layer_norm = GroupNorm(num_channels, num_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.kaiming_normal_(self.conv.weight)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, C) for ``x`` (N, frames or samples, channels)."""
        (stride,) = self.conv.stride
        x = convolve(x, self.conv.weight, self.conv.bias, stride)
        if isinstance(self.layer_norm, LayerNorm):
            x = self.layer_norm(x)
        elif self.layer_norm is not None:
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        return gelu(x)

    if TYPE_CHECKING:
        __call__ = forward


@final
@dataclass(frozen=True)
class FrameGeometry:
    """Which samples a frame sees: those of its receptive field, in the steps of all convolutions together."""

    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def receptive_field(self) -> int:
        """The samples that a frame sees, 400 in the paper; fewer samples give no frame."""
        num_samples = 1
        for kernel_size, stride in zip(reversed(self.kernel_sizes), reversed(self.strides), strict=True):
            num_samples = (num_samples - 1) * stride + kernel_size
        return num_samples

    @property
    def hop(self) -> int:
        """The samples from one frame to the next, 320 in the paper."""
        return math.prod(self.strides)

    def num_frames(self, num_samples: int) -> int:
        """Return T for a number of samples; 0 if there are too few."""
        # Steps of steps make one large step, whatever is rounded off in between.
        return max(0, (num_samples - self.receptive_field) // self.hop + 1)

    def num_frames_of(self, lengths: Tensor) -> Tensor:
        """Return the frames of ``lengths`` in samples, of any shape and on any device."""
        frames = (lengths - self.receptive_field).div(self.hop, rounding_mode="floor") + 1
        return frames.clamp(min=0)


@final
class FeatureExtractor(Module):
    """Convolutions one after the other."""

    conv_layers: ModuleList

    def __init__(self, layers: Sequence[ConvLayer], geometry: FrameGeometry) -> None:
        """Take over the layers in their order; ``geometry`` tells which frames they make."""
        super().__init__()
        self.conv_layers = ModuleList(layers)
        self.geometry = geometry

    @override
    def forward(self, waveforms: Tensor) -> Tensor:
        """Return (N, T, C) in the dtype of the weights for ``waveforms`` (N, S)."""
        # (N, S) -> (N, S, 1) -> (N, T, C)
        x = waveforms[:, :, None].to(cast("ConvLayer", self.conv_layers[0]).conv.weight.dtype)
        for layer in self.conv_layers:
            x = cast("ConvLayer", layer)(x)
        return x

    if TYPE_CHECKING:
        __call__ = forward


@final
class FeatureProjection(Module):
    """Normalizes frames and brings them to the encoder's width."""

    layer_norm: LayerNorm | None
    projection: Linear

    def __init__(self, num_channels: int, dim: int, *, is_normalized: bool = False) -> None:
        """Create a projection from C to D channels.

        Args:
            num_channels: C.
            dim: D.
            is_normalized: Whether frames are on one scale already, so that the channels of each need no norm.
        """
        super().__init__()
        self.layer_norm = None if is_normalized else LayerNorm(num_channels)
        self.projection = Linear(num_channels, dim)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, D) for ``x`` (N, T, C)."""
        y: Tensor = self.projection(x if self.layer_norm is None else self.layer_norm(x))
        return y

    if TYPE_CHECKING:
        __call__ = forward

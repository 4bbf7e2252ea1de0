"""The convolutional front end: log-mel features at 100 Hz to vectors at 50 Hz.

Letters: N batch, F input frames, M mels, C channels, B bins left of the mels, T frames, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from fairseq2.nn import Linear
from torch import Tensor
from torch.nn import Conv2d, Module, Sequential
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from spear_plugin.models.zipformer.initialization import init_scaled
from spear_plugin.models.zipformer.layer import TimeSharedDropout
from spear_plugin.models.zipformer.padding import padding_mask_of
from spear_plugin.models.zipformer.regularization import PLAIN, Regularizers, draw_kept_rows, keep_rows
from spear_plugin.nn.activations import BiasNorm, SwooshL, SwooshR

MIN_NUM_INPUT_FRAMES: Final = 9
"""The shortest input that gives one output frame."""


class ConvNeXt(Module):
    """Residual block of a depthwise 7 x 7 and two pointwise convolutions (Liu et al., 2022), without norm."""

    def __init__(self, num_channels: int, *, expansion: int = 3, regularizers: Regularizers = PLAIN) -> None:
        super().__init__()

        inner = expansion * num_channels

        self.depthwise_conv = Conv2d(num_channels, num_channels, kernel_size=7, padding=3, groups=num_channels)
        self.pointwise_conv1 = Conv2d(num_channels, inner, kernel_size=1)
        self.activation = SwooshL()
        self.pointwise_conv2 = Conv2d(inner, num_channels, kernel_size=1)

        self.skip = regularizers.create_branch_skip((0.0, 0.2), (20000.0, 0.015))
        self.hidden_balancer = regularizers.create_balancer((0.3, 1.0), (0.75, 5.0))
        self.out_balancer = regularizers.create_balancer((0.4, 0.6), (1.0, 6.0))
        self.out_whiten = regularizers.create_whitener(5.0, 1.0)

        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_scaled(self.pointwise_conv2, scale=0.01)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, T, B) from ``x`` (N, C, T, B)."""
        # (N, C, T, B) -> (N, T, B, C), without a copy if the channels are last in memory
        y = self.depthwise_conv(x).permute(0, 2, 3, 1)

        # (N, T, B, C) -> (N, T, B, 3 C) -> (N, T, B, C)
        y = self.hidden_balancer(F.linear(y, *_as_linear(self.pointwise_conv1)))
        y = self.activation.project(y, *_as_linear(self.pointwise_conv2))

        # (N, C, T, B) -> (N, T, B, C), which both see as so many frames of C channels
        y = x.permute(0, 2, 3, 1) + keep_rows(y, draw_kept_rows(y, self.skip))
        y = self.out_whiten(self.out_balancer(y))

        # (N, T, B, C) -> (N, C, T, B)
        return y.permute(0, 3, 1, 2)

    if TYPE_CHECKING:
        __call__ = forward


def _as_linear(conv: Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with a kernel of 1 as those of the linear layer that it is."""
    assert conv.bias is not None

    return conv.weight.flatten(1), conv.bias


class ConvSubsampling(Module):
    """Halves the frame rate with three convolutions and a ConvNeXt block (Zipformer, section 3.1)."""

    def __init__(
        self, num_mel_bins: int, channels: Sequence[int], dim: int, regularizers: Regularizers = PLAIN
    ) -> None:
        super().__init__()

        conv1, conv2, conv3 = channels

        def create_balancer(max_abs: float) -> Module:
            return regularizers.create_balancer((0.05, 0.95), (0.2, max_abs), channel_dim=1)

        # The numbers of the released state dict.
        self.conv = Sequential(
            OrderedDict[str, Module](
                {
                    "0": Conv2d(1, conv1, kernel_size=3, padding=(0, 1)),
                    "1": regularizers.create_first_conv_grad_scale(),
                    "2": create_balancer(1.0),
                    "3": SwooshR(),
                    "4": Conv2d(conv1, conv2, kernel_size=3, stride=2),
                    "5": create_balancer(4.0),
                    "6": SwooshR(),
                    "7": Conv2d(conv2, conv3, kernel_size=3, stride=(1, 2)),
                    "8": create_balancer(4.0),
                    "9": SwooshR(),
                }
            )
        )

        self.convnext = ConvNeXt(conv3, regularizers=regularizers)

        num_bins = ((num_mel_bins - 1) // 2 - 1) // 2

        self.out = Linear(conv3 * num_bins, dim, bias=True)
        self.out_whiten = regularizers.create_whitener(4.0, 2.0, grad_scale=0.02)
        self.out_norm = BiasNorm(dim, regularizers.create_norm_limits())
        self.dropout = TimeSharedDropout(regularizers.create_dropout())

    @override
    def forward(
        self, fbank: Tensor, lengths: Tensor | None, *, reference_padding: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return vectors (N, T, D) with T = (F - 7) // 2, and their lengths (N).

        :param fbank: The log-mel features (N, F, M).
        :param lengths: The number of valid frames (N) of each utterance; None if all F are valid.
        :param reference_padding: If True, the ConvNeXt block sees what the convolutions make of the padding, as in the
            authors' code, so up to 3 valid frames at the end depend on it. Otherwise it sees zeros.

        :raises ValueError: If ``fbank`` has fewer than 9 frames.
        """
        if fbank.size(1) < MIN_NUM_INPUT_FRAMES:
            raise ValueError(
                f"`fbank` must have at least {MIN_NUM_INPUT_FRAMES} frames (about 0.1 s), but has {fbank.size(1)} "
                "instead: leave out shorter utterances."
            )

        # (N, F, M) -> (N, F, M, 1) -> (N, 1, F, M), which the convolutions take as channels-last and keep so: on a CPU
        # that is 2 to 3 times faster, most of all for the gradient of the depthwise convolution.
        x = fbank[..., None].permute(0, 3, 1, 2)

        # (N, 1, F, M) -> (N, C, T, B)
        x = self.conv(x)

        if lengths is not None:
            lengths = (lengths - 7) // 2

            if not reference_padding:
                x = torch.where(padding_mask_of(lengths, x.size(2))[:, None, :, None], 0.0, x)

        x = self.convnext(x)

        # (N, C, T, B) -> (N, T, C, B) -> (N, T, C * B) -> (N, T, D)
        x = self.out(x.transpose(1, 2).flatten(2))

        return self.dropout(self.out_norm(self.out_whiten(x))), lengths

    if TYPE_CHECKING:
        __call__ = forward

"""Stacks of Zipformer layers, each at its own frame rate (Zipformer, section 3.1).

Letters: N batch, T frames, D width, P width of the positional encoding, R downsampling factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.nn import functional as F  # noqa: N812
from typing_extensions import override

from spear_plugin.models.zipformer.attention import relative_positions
from spear_plugin.models.zipformer.layer import Bypass, ZipformerLayer
from spear_plugin.models.zipformer.padding import Padding
from spear_plugin.nn.gradients import ParameterLimits


@dataclass(kw_only=True)
class ZipformerOutput:
    last: Tensor
    """The output (N, T, D), D the largest width of a stack; at 50 Hz or, if the output is downsampled, 25 Hz. Values of
    padded frames are finite and meaningless."""

    lengths: Tensor | None
    """The number of valid frames (N) of ``last``; None if the input had none."""

    layers: list[Tensor]
    """One output (N, T, D) per layer, repeated to 50 Hz and cut to the length of the input, taken before its stack is
    combined with the stack's input. Empty if not asked for."""


class Downsample(Module):
    """Averages groups of R frames with learned weights, the same for all channels."""

    bias: Parameter

    def __init__(self, factor: int) -> None:
        super().__init__()

        self.factor = factor

        self.bias = Parameter(torch.empty(factor))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.bias)

    @override
    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """Return (N, ceil(T / R), D) from ``x`` (N, T, D); an incomplete group repeats the last frame.

        That is the last frame of the tensor or, where each utterance shall give what it gives alone, of the utterance.
        """
        num_missing = -x.size(1) % self.factor

        if padding is None or padding.reference:
            if num_missing > 0:
                x = torch.cat([x, x[:, -1:].expand(-1, num_missing, -1)], dim=1)
        else:
            x = _repeat_own_last_frame(F.pad(x, (0, 0, 0, num_missing)), padding)

        # (N, T, D) -> (N, T / R, R, D) -> (N, T / R, D)
        return torch.einsum("ntrd,r->ntd", torch.unflatten(x, 1, (-1, self.factor)), self.bias.softmax(dim=0))

    if TYPE_CHECKING:
        __call__ = forward


def _repeat_own_last_frame(x: Tensor, padding: Padding) -> Tensor:
    last = (padding.lengths - 1).clamp_min(0)

    # (N) -> (N, 1, D)
    last_frames = x.gather(1, last[:, None, None].expand(-1, 1, x.size(2)))

    return torch.where(padding.mask(x.size(1))[:, :, None], last_frames, x)


def upsample(x: Tensor, factor: int, num_frames: int) -> Tensor:
    """Repeat each frame of ``x`` (N, T / R, D) R times and cut to (N, ``num_frames``, D)."""
    return x[:, :, None].expand(-1, -1, factor, -1).flatten(1, 2)[:, :num_frames]


class ZipformerStack(Module):
    """Layers of one width at one frame rate."""

    factor: int = 1

    def __init__(
        self, layers: Sequence[ZipformerLayer], dim: int, pos_dropout_p: float, unmasked_dim: int | None = None
    ) -> None:
        """Put a stack together.

        :param unmasked_dim: The number of channels that feature masks leave alone; None for half of ``dim``.
        """
        super().__init__()

        self.dim = dim
        self.unmasked_dim = dim // 2 if unmasked_dim is None else min(unmasked_dim, dim)
        self.pos_dropout_p = pos_dropout_p

        self.layers = ModuleList(layers)

        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make all layers start as copies of the first; fairseq2 resets the layers themselves before."""
        first, *others = self.layers

        for layer in others:
            for target, source in zip(layer.parameters(), first.parameters(), strict=True):
                target.copy_(source)

    @override
    def forward(
        self, x: Tensor, positions: Tensor, padding: Padding | None, row_masks: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output (N, T, D) and the outputs of all layers, the last of which it is.

        :param x: The input (N, T, D).
        :param positions: The positional encoding, of which the middle 2 T rows are used.
        :param row_masks: What utterances keep of the maskable channels, see :func:`draw_row_masks`.
        """
        if row_masks is not None:
            # (N, 2) -> (N, 1, D)
            feature_mask = expand_row_masks(row_masks, self.dim, self.unmasked_dim).type_as(x)

            x = x * feature_mask

        num_frames = x.size(1)

        padding_mask = None if padding is None else padding.mask(num_frames)

        center = positions.size(0) // 2

        positions = positions[center - num_frames : center + num_frames]
        positions = F.dropout(positions, self.pos_dropout_p, self.training)

        outputs = []

        for layer in self.layers:
            x = layer(x, positions, padding_mask)

            if row_masks is not None:
                x = x * feature_mask

            outputs.append(x)

        return x, outputs

    if TYPE_CHECKING:
        __call__ = forward


class DownsampledStack(Module):
    """Runs a stack at 1 / R of the frame rate and mixes what it gives with the stack's input."""

    def __init__(self, encoder: ZipformerStack, factor: int, bypass_limits: ParameterLimits | None = None) -> None:
        super().__init__()

        self.dim = encoder.dim
        self.factor = factor

        self.downsample = Downsample(factor)
        self.encoder = encoder
        self.out_combiner = Bypass(encoder.dim, bypass_limits)

    @property
    def layers(self) -> ModuleList:
        return self.encoder.layers

    @override
    def forward(
        self, x: Tensor, positions: Tensor, padding: Padding | None, row_masks: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output (N, T, D) and, at the lower rate, the outputs (N, ceil(T / R), D) of all layers."""
        y = self.downsample(x, padding)

        padding = None if padding is None else padding.downsampled(self.factor)

        y, outputs = self.encoder(y, positions, padding, row_masks)

        return self.out_combiner(x, upsample(y, self.factor, x.size(1))), outputs

    if TYPE_CHECKING:
        __call__ = forward


class ZipformerEncoder(Module):
    """Represents a Zipformer encoder: stacks whose frame rate falls towards the middle and rises again."""

    def __init__(
        self,
        encoders: Sequence[ZipformerStack | DownsampledStack],
        pos_dim: int,
        downsample_output: Downsample | None = None,
        *,
        feature_mask_p: float = 0.0,
    ) -> None:
        super().__init__()

        self.pos_dim = pos_dim
        self.feature_mask_p = feature_mask_p

        self.encoders = ModuleList(encoders)

        self.downsample_output = downsample_output

    @property
    def layer_lists(self) -> list[ModuleList]:
        """The layers of each stack, for wrappers that work layer by layer (FSDP, activation checkpointing, compile)."""
        return [stack.layers for stack in self._stacks]

    @property
    def _stacks(self) -> list[ZipformerStack | DownsampledStack]:
        return list(self.encoders)  # type: ignore[arg-type]

    @override
    def forward(
        self, x: Tensor, lengths: Tensor | None, *, reference_padding: bool = False, collect_layers: bool = True
    ) -> ZipformerOutput:
        """Encode ``x``.

        :param x: The vectors (N, T, D) of the front end, with D the width of the first stack.
        :param lengths: The number of valid frames (N) of each utterance; None, if all T are valid, saves the masks.
        :param reference_padding: If True, the last valid frames of an utterance depend on its padding exactly as in the
            authors' code; if False, an utterance gives what it gives alone.
        :param collect_layers: If False, ``layers`` of the output stays empty.
        """
        num_frames = x.size(1)

        padding = None if lengths is None else Padding(lengths, reference_padding)

        # (2 T, P)
        positions = relative_positions(num_frames, self.pos_dim, device=x.device).type_as(x)

        row_masks = draw_row_masks(x, self.feature_mask_p) if self.training and self.feature_mask_p > 0.0 else None

        layers, stack_outputs = [], []

        for stack in self._stacks:
            x, outputs = stack(_fit_width(x, stack.dim), positions, padding, row_masks)

            stack_outputs.append(x)

            if collect_layers:
                layers += [upsample(y, stack.factor, num_frames) for y in outputs]

        x = _join_widths(stack_outputs)

        if self.downsample_output is not None:
            x = self.downsample_output(x, padding)

            padding = None if padding is None else padding.downsampled(self.downsample_output.factor)

        return ZipformerOutput(last=x, lengths=None if padding is None else padding.lengths, layers=layers)

    if TYPE_CHECKING:
        __call__ = forward


def draw_row_masks(x: Tensor, p: float) -> Tensor:
    """Draw which utterances of ``x`` (N, T, D) keep their maskable channels, in all stacks and frames alike.

    :returns: Booleans (N, 2) for the lower and the upper half of those channels. Each half is lost with probability
        ``p``; without the lower one, the upper one is lost as well.
    """
    return (torch.rand((x.size(0), 2), device=x.device) > p).cumprod(dim=1).bool()


def expand_row_masks(row_masks: Tensor, dim: int, unmasked_dim: int) -> Tensor:
    """Return a mask (N, 1, D) of booleans from those of :func:`draw_row_masks`."""
    middle = unmasked_dim + (dim - unmasked_dim) // 2

    channels = torch.arange(dim, device=row_masks.device)

    lower, upper = row_masks[:, :1], row_masks[:, 1:]

    return ((channels < unmasked_dim) | ((channels < middle) & lower) | upper)[:, None]


def _fit_width(x: Tensor, dim: int) -> Tensor:
    """Cut the channels of ``x`` or add channels of zeros."""
    return x if x.size(-1) == dim else F.pad(x, (0, dim - x.size(-1)))


def _join_widths(stack_outputs: Sequence[Tensor]) -> Tensor:
    """Return the last output, widened by the channels that only earlier stacks have, the latest first."""
    pieces = [stack_outputs[-1]]

    dim = pieces[0].size(-1)

    for output in reversed(stack_outputs[:-1]):
        if output.size(-1) > dim:
            pieces.append(output[..., dim:])

            dim = output.size(-1)

    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

"""Models for downstream tasks. Letters: N batch, S samples, T frames, D width, L layers, V tokens, C labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Module, Parameter
from typing_extensions import override

from spear_plugin.models.downstream.config import CtcConfig, DownstreamConfig, TaggingConfig
from spear_plugin.models.downstream.encoder import EncodedFrames, FrameEncoder


@final
class LayerSum(Module):
    """The sum of all layers with learned weights that add up to 1 (SUPERB, arXiv 2105.01051)."""

    weights: Parameter

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = Parameter(torch.empty(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weights)

    @override
    def forward(self, layers: list[Tensor]) -> Tensor:
        """Return (N, T, D) of L times (N, T, D)."""
        return torch.einsum("l,lntd->ntd", self.weights.softmax(dim=0).to(layers[0].dtype), torch.stack(layers))

    if TYPE_CHECKING:
        __call__ = forward


class DownstreamModel(Module):
    """An encoder below a head, which a subclass adds.

    A frozen encoder has no gradients and is in evaluation mode, whatever is called on the model.

    Args:
        encoder: The encoder.
        layer_sum: What the head reads of it; None for its output.
        dropout_p: The dropout probability on what the head reads.
        config: What the parts were made from, for those who use the model; the model itself does not read it.
    """

    def __init__(
        self, encoder: FrameEncoder, layer_sum: LayerSum | None, *, dropout_p: float, config: DownstreamConfig
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer_sum = layer_sum
        self.dropout = Dropout(dropout_p)
        self.config = config
        self.is_encoder_frozen = False
        self.requires_grad_(True)

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module, but what only pre-training uses never requires gradients, nor does a frozen encoder."""
        super().requires_grad_(requires_grad)
        for parameter in self.encoder.unused_parameters():
            parameter.requires_grad_(False)
        if self.is_encoder_frozen:
            self.encoder.requires_grad_(False)
        return self

    @override
    def train(self, mode: bool = True) -> Self:
        """As of any module, but a frozen encoder is always in evaluation mode."""
        super().train(mode)
        if self.is_encoder_frozen:
            self.encoder.eval()
        return self

    def freeze_encoder(self, is_frozen: bool) -> None:
        """Stop or begin to train the encoder."""
        if is_frozen == self.is_encoder_frozen:
            return
        self.is_encoder_frozen = is_frozen
        for parameter in self.encoder.trained_parameters():
            parameter.requires_grad_(not is_frozen)
            parameter.grad = None
        self.encoder.train(self.training and not is_frozen)

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads (N, T, D) and its valid frames (N,); arguments are those of the encoder."""
        frames: EncodedFrames = self.encoder(waveforms, lengths)
        x = frames.last if self.layer_sum is None else self.layer_sum(frames.layers)
        return self.dropout(x), frames.lengths


@dataclass(kw_only=True)
class CtcOutput:
    """What a speech recognizer says."""

    log_probs: Tensor
    """(N, T, V) float32, log-probabilities of the tokens; token 0 is the blank."""

    lengths: Tensor
    """(N,) int64, the valid frames."""


@final
class CtcModel(DownstreamModel):
    """A speech recognizer."""

    config: CtcConfig

    def __init__(self, encoder: FrameEncoder, layer_sum: LayerSum | None, *, config: CtcConfig) -> None:
        """Put a model together; arguments are those of :class:`DownstreamModel`."""
        super().__init__(encoder, layer_sum, dropout_p=config.dropout_p, config=config)
        self.projection = Linear(encoder.dim, config.vocabulary_size)

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> CtcOutput:
        """Recognize a batch.

        Args:
            waveforms: (N, S) float32 in [-1, 1] at 16 kHz.
            lengths: (N,) int64 in samples, each at most S.
        """
        x, frame_lengths = self.encode(waveforms, lengths)
        return CtcOutput(log_probs=self.projection(x).float().log_softmax(dim=2), lengths=frame_lengths)

    if TYPE_CHECKING:
        __call__ = forward


@final
class TaggingModel(DownstreamModel):
    """An audio tagger."""

    config: TaggingConfig

    def __init__(self, encoder: FrameEncoder, layer_sum: LayerSum | None, *, config: TaggingConfig) -> None:
        """Put a model together; arguments are those of :class:`DownstreamModel`."""
        super().__init__(encoder, layer_sum, dropout_p=config.dropout_p, config=config)
        self.projection = Linear(encoder.dim, len(config.labels))

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return logits (N, C) float32, one for each of ``config.labels``; their sigmoid is a probability.

        Args:
            waveforms: (N, S) float32 in [-1, 1] at 16 kHz.
            lengths: (N,) int64 in samples, each at most S.
        """
        x, frame_lengths = self.encode(waveforms, lengths)
        is_valid = torch.arange(x.size(1), device=x.device) < frame_lengths[:, None]
        # (N, T, D) -> (N, D)
        pooled = x.float().where(is_valid[:, :, None], 0.0).sum(dim=1) / frame_lengths.clamp(min=1)[:, None]
        logits: Tensor = self.projection(pooled)
        return logits.float()

    if TYPE_CHECKING:
        __call__ = forward

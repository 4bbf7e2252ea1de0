"""Masks on the log-mel input (arXiv 2510.25955).

Letters: N batch, F frames at 100 Hz, M mel bins, T encoder frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from spear_plugin.nn.masking import compute_channel_mask, compute_span_mask


@dataclass(frozen=True, kw_only=True)
class FbankMasks:
    """What is hidden from the encoder."""

    time: Tensor
    """(N, F) bool, True on masked frames."""

    channel: Tensor
    """(N, M) bool, True on mel bins that are masked in all frames."""

    def apply(self, fbank: Tensor, mask_embed: Tensor) -> Tensor:
        """Return (N, F, M) with masked bins at zero, in padding too, and masked frames at ``mask_embed`` (M)."""
        fbank = fbank.masked_fill(self.channel[:, None, :], 0.0)
        return torch.where(self.time[:, :, None], mask_embed, fbank)

    def at_output_rate(self, num_frames: int, *, factor: int) -> Tensor:
        """Return (N, T) bool, True on encoder frames at least half of whose ``factor`` input frames are masked."""
        # (N, F) -> (N, F / factor) -> (N, T)
        return avg_pool1d(self.time.float(), factor)[:, :num_frames] >= 0.5


@dataclass(frozen=True, kw_only=True)
class FbankMasker:
    """Draws masks; the fields are described in the model's configuration."""

    time_probability: float
    time_span: int
    min_time_spans: int
    channel_probability: float
    channel_span: int

    def draw(self, fbank: Tensor, lengths: Tensor) -> FbankMasks:
        """Draw masks for ``fbank`` (N, F, M) from torch's global generator, none on frames beyond ``lengths`` (N)."""
        num_rows, num_frames, num_channels = fbank.shape
        channel = compute_channel_mask(
            num_rows, num_channels, probability=self.channel_probability, span=self.channel_span, device=fbank.device
        )
        time = compute_span_mask(
            lengths, num_frames, probability=self.time_probability, span=self.time_span, min_masks=self.min_time_spans
        )
        return FbankMasks(time=time, channel=channel)

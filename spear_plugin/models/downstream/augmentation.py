"""SpecAugment (arXiv 1904.08779) on a padded batch. Letters: N batch, T frames, C channels."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import Module
from torchaudio.functional import mask_along_axis_iid
from typing_extensions import override


@final
class SpecAugmentation(Module):
    """Hides spans of frames and of channels, other ones in each utterance, in training only.

    They are drawn from torch's global generator of the input's device, which checkpoints save. What is hidden gets the
    utterance's mean, so that nothing tells how much padding the batch has.
    """

    def __init__(
        self,
        *,
        num_time_masks: int,
        max_time_frames: int,
        max_time_share: float,
        num_channel_masks: int,
        max_channels: int,
    ) -> None:
        """Set the limits.

        Args:
            num_time_masks: Masks over time.
            max_time_frames: Length of the longest.
            max_time_share: Largest share of T that all of them hide together.
            num_channel_masks: Masks over channels.
            max_channels: Width of the widest.
        """
        super().__init__()
        self.num_time_masks = num_time_masks
        self.max_time_frames = max_time_frames
        self.max_time_share = max_time_share
        self.num_channel_masks = num_channel_masks
        self.max_channels = max_channels

    @override
    def forward(self, frames: Tensor, is_valid: Tensor | None) -> Tensor:
        """Return ``frames`` (N, T, C) with masks; ``is_valid`` (N, T) is False on padding, None if there is none."""
        if not self.training:
            return frames
        means = _mean_of_utterances(frames, is_valid)
        # (N, T, C) -> (N, C, T)
        x = (frames - means).transpose(1, 2)
        share = self.max_time_share / max(self.num_time_masks, 1)
        for _ in range(self.num_time_masks):
            x = mask_along_axis_iid(x, self.max_time_frames, 0.0, axis=2, p=share)
        for _ in range(self.num_channel_masks):
            x = mask_along_axis_iid(x, self.max_channels, 0.0, axis=1)
        masked: Tensor = x.transpose(1, 2) + means
        return masked


def _mean_of_utterances(frames: Tensor, is_valid: Tensor | None) -> Tensor:
    """Return (N, 1, 1)."""
    if is_valid is None:
        return frames.mean(dim=(1, 2), keepdim=True)
    sums = frames.masked_fill(~is_valid[:, :, None], 0.0).sum(dim=(1, 2), keepdim=True)
    return sums / (is_valid.sum(dim=1).clamp(min=1)[:, None, None] * frames.size(2))

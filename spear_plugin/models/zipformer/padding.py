"""What the modules need to know about padding. Letters: N batch, T frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def padding_mask_of(lengths: Tensor, num_frames: int) -> Tensor:
    """Return a mask (N, T) that is True at the frames from ``lengths`` (N) on."""
    return torch.arange(num_frames, device=lengths.device) >= lengths[:, None]


@dataclass(frozen=True)
class Padding:
    """The padding of a batch at one frame rate. A batch without padding has None in its place."""

    lengths: Tensor
    """The number of valid frames (N) of each utterance."""

    reference: bool
    """If True, padded frames leak into valid ones exactly as in the authors' code; otherwise each utterance gives what
    it gives alone."""

    def mask(self, num_frames: int) -> Tensor:
        return padding_mask_of(self.lengths, num_frames)

    def downsampled(self, factor: int) -> Padding:
        """Return the padding of groups of ``factor`` frames; a group is valid if its first frame is."""
        return Padding((self.lengths + (factor - 1)) // factor, self.reference)

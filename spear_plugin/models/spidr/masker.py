from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spear_plugin.models.spidr.frontend import FrameGeometry
from spear_plugin.nn.masking import SpanLaw, compute_equal_span_mask


@final
@dataclass(frozen=True, kw_only=True)
class SpanMasker:
    """Draws masks on the host, where a reader makes batches; the fields are described in the model's configuration."""

    geometry: FrameGeometry
    probability: float
    span: int
    min_spans: int
    law: SpanLaw
    spread: float

    def draw(self, lengths: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draw the mask of a batch, which :class:`SpidrModel` needs in training.

        Args:
            lengths: N lengths in samples, padded to the longest.
            generator: Of the CPU; one that is seeded by (seed, epochs, examples of the batch) makes masks independent
                of who draws them. By default torch's global one.

        Returns:
            (N, T) bool on the host, with equally many True in each row.
        """
        frame_lengths = [self.geometry.num_frames(length) for length in lengths]
        return compute_equal_span_mask(
            frame_lengths,
            max(frame_lengths),
            probability=self.probability,
            span=self.span,
            min_masks=self.min_spans,
            law=self.law,
            spread=self.spread,
            generator=generator,
        )

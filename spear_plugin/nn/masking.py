"""Span masks for masked prediction, drawn for a whole batch at once on the device of the lengths.

The sampling law is that of fairseq's ``compute_mask_indices`` with static spans, as SPEAR (arXiv 2510.25955) uses it:
the number of spans is rounded at random and starts are drawn without replacement. Differences: a sequence that is no
longer than one span stays unmasked, where the original raises, and so does the last frame of a sequence that a draw
would cover entirely.

Letters: N batch, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_span_mask(lengths: Tensor, max_length: int, *, probability: float, span: int, min_masks: int = 0) -> Tensor:
    """Draw a mask of possibly overlapping spans for each sequence, without a host-device synchronisation.

    A sequence of length L gets n spans, n = floor(``probability`` * L / ``span`` + U) with U uniform in [0, 1),
    at least ``min_masks`` and at most L // ``span``. Starts are distinct and lie in [0, L - ``span``). Random numbers
    come from torch's global generator of the device.

    Args:
        lengths: (N,) integer lengths in frames, each at most ``max_length``.
        max_length: T, the width of the mask.
        probability: Share of frames that would be masked if spans never overlapped, in [0, 1].
        span: Length of one span in frames, at least 1.
        min_masks: Smallest number of spans for a sequence that is long enough.

    Returns:
        (N, T) bool, True on masked frames; never True at or beyond a sequence's own length.
    """
    max_num_spans = min(max(min_masks, int(probability * max_length / span) + 1), max_length // span)
    if max_num_spans == 0:
        return torch.zeros((lengths.size(0), max_length), dtype=torch.bool, device=lengths.device)
    num_spans = _draw_num_spans(lengths, probability, span, min_masks)
    starts = _draw_starts(lengths, num_spans, max_num_spans, max_length, span)
    positions = torch.arange(max_length, device=lengths.device)
    # (N, T) marks of span starts -> frames with a start among themselves and the span - 1 frames before
    num_started = starts.cumsum(dim=1)
    num_ended = torch.nn.functional.pad(num_started, (span, 0))[:, :max_length]
    mask = (num_started > num_ended) & (positions < lengths[:, None])
    is_covered = mask.sum(dim=1) == lengths
    return mask & ~(is_covered[:, None] & (positions == lengths[:, None] - 1))


def compute_channel_mask(
    num_rows: int, num_channels: int, *, probability: float, span: int, device: torch.device
) -> Tensor:
    """Draw for each utterance the channels that are masked over its whole duration.

    Args:
        num_rows: N.
        num_channels: Number of channels, for example mel bins.
        probability: As in :func:`compute_span_mask`; there is no smallest number of spans.
        span: Length of one span in channels.
        device: Where to draw.

    Returns:
        (N, ``num_channels``) bool.
    """
    lengths = torch.full((num_rows,), num_channels, device=device)
    return compute_span_mask(lengths, num_channels, probability=probability, span=span)


def _draw_num_spans(lengths: Tensor, probability: float, span: int, min_masks: int) -> Tensor:
    rounding = torch.rand(lengths.shape, device=lengths.device)
    num_spans = (probability * lengths / span + rounding).long().clamp(min=min_masks)
    num_spans = torch.minimum(num_spans, lengths // span)
    return num_spans.masked_fill(lengths <= span, 0)


def _draw_starts(lengths: Tensor, num_spans: Tensor, max_num_spans: int, max_length: int, span: int) -> Tensor:
    """Return (N, T) integer marks, 1 on each row's ``num_spans`` distinct starts."""
    num_starts = lengths - span
    # Hardly longer than its spans: starts up to `num_spans`, the last span then ends with the sequence.
    num_starts = torch.where(num_starts <= num_spans, num_spans + 1, num_starts)
    scores = torch.rand((lengths.size(0), max_length), device=lengths.device)
    positions = torch.arange(max_length, device=lengths.device)
    scores = scores.masked_fill(positions >= num_starts[:, None], -1.0)
    # The highest of independent uniform scores are a sample without replacement.
    starts = scores.topk(max_num_spans, dim=1).indices
    is_used = torch.arange(max_num_spans, device=lengths.device) < num_spans[:, None]
    return torch.zeros_like(scores, dtype=torch.long).scatter_(1, starts, is_used.long())

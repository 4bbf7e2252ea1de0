"""Span masks for masked prediction: the number of spans is rounded at random, starts are drawn without replacement.

Two rules follow fairseq's ``compute_mask_indices``. :func:`compute_span_mask` draws for a whole batch at once on the
device of the lengths, as SPEAR (arXiv 2510.25955) needs it. Differences: a sequence that is no longer than one span
stays unmasked, where the original raises, and so does the last frame of a sequence that a draw would cover entirely.
:func:`compute_equal_span_mask` draws on the host, with as many masked frames in each sequence, as SpidR (arXiv
2512.20308) does.

Letters: N batch, T frames, P spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SpanLaw: TypeAlias = Literal["static", "uniform", "normal", "poisson"]
"""How the lengths of spans are distributed; see :func:`compute_equal_span_mask`."""


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


def compute_equal_span_mask(
    lengths: Sequence[int],
    max_length: int,
    *,
    probability: float,
    span: int,
    min_masks: int,
    law: SpanLaw = "static",
    spread: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw possibly overlapping spans for each sequence, then unmask frames until all have equally many (SpidR, A.2).

    A sequence of length L gets floor(``probability`` * L / ``span`` + U) spans, at least ``min_masks``, at distinct
    starts in [0, L - ``span``), or in [0, number of spans] if it is too short for that. Frames beyond the smallest
    number of masked frames in the batch are then unmasked one by one at random. Numbers are drawn in the order of the
    authors' code, so that the same generator gives the same masks.

    Args:
        lengths: N lengths in frames, at least one, each at most ``max_length``.
        max_length: T, the width of the mask.
        probability: Share of frames that would be masked if spans never overlapped, in [0, 1].
        span: Length of one span in frames, at least 1; the mean length under other laws than ``static``.
        min_masks: Smallest number of spans.
        law: ``static`` spans have one length, ``uniform`` ones lengths in [``spread``, 2 * ``span``], ``normal`` ones
            the standard deviation ``spread`` and at least one frame; ``poisson`` ones are Poisson distributed.
        spread: See ``law``.
        generator: Of the CPU; by default torch's global one.

    Returns:
        (N, T) bool on the host, True on masked frames, with equally many in each row and none at or beyond a
        sequence's own length.
    """
    torch.rand(1, generator=generator)  # The authors draw a number that they do not use.
    rows = []
    for length in lengths:
        num_spans = max(min_masks, int(probability * length / span + torch.rand(1, generator=generator).item()))
        sizes = _draw_span_sizes(num_spans, span, law, spread, generator)
        num_starts = length - min(sizes.tolist(), default=span)
        starts = torch.randperm(num_starts if num_starts > num_spans else num_spans + 1, generator=generator)
        starts = starts[:num_spans].clamp(max=length)
        rows.append((starts, (starts + sizes).clamp(max=length)))
    mask = _cover_spans([start for start, _ in rows], [end for _, end in rows], max_length)
    return _keep_equally_many(mask, generator)


def _draw_span_sizes(
    num_spans: int, span: int, law: SpanLaw, spread: float, generator: torch.Generator | None
) -> Tensor:
    """Return the lengths (P,) int64 of spans."""
    if law == "static":
        return torch.full((num_spans,), span)
    if law == "uniform":
        return torch.randint(int(spread), 2 * span + 1, (num_spans,), generator=generator)
    if law == "normal":
        return torch.normal(float(span), spread, (num_spans,), generator=generator).round().clamp(min=1).long()
    return torch.poisson(torch.full((num_spans,), float(span)), generator=generator).long()


def _cover_spans(starts: list[Tensor], ends: list[Tensor], max_length: int) -> Tensor:
    """Return (N, T) bool, True from each start (P,) to before its end."""
    edges = torch.zeros((len(starts), max_length + 1), dtype=torch.long)
    # Padding marks the column behind the last frame.
    for positions, mark in ((starts, 1), (ends, -1)):
        indices = pad_sequence(positions, batch_first=True, padding_value=max_length)
        edges.scatter_add_(1, indices, torch.full_like(indices, mark))
    return edges[:, :max_length].cumsum(dim=1) > 0


def _keep_equally_many(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unmask random frames of ``mask`` (N, T) until each row has as many as the row with the fewest."""
    counts = mask.sum(dim=1).tolist()
    num_kept = min(counts)
    for row, count in zip(mask, counts, strict=True):
        if count > num_kept:
            kept = row.nonzero().squeeze(1)[torch.randperm(count, generator=generator)[:num_kept]]
            row.zero_()[kept] = True
    return mask


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

"""The joint search over all codebooks that improves the codes of a frame (MVQ, arXiv 2211.00508).

A frame is approximated by a sum of one entry of each codebook, so the squared error is a sum of inner products: of the
frame with entries, and of entries with entries. Both are looked up here; no vector of the frame's width is moved. The
products of entries depend on the weights alone and are computed once.

What the error would be if some codebooks changed is needed up to a constant of the frame only; it is called score.

Letters: B frames, D width, N codebooks, K entries of a codebook, P kept entries of a codebook and its current one,
G groups of L codebooks, H = G / 2 pairs of groups, I options of a group, U distinct entries of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_MAX_OPTIONS: Final = 128  # of a group, however many codebooks it has

# Look-ups at once, which bounds the memory: 96 MiB of indices and values on a CPU, 3 GiB on a GPU.
_CPU_LOOKUPS: Final = 2**23
_GPU_LOOKUPS: Final = 2**28


@dataclass(frozen=True)
class EntryProducts:
    """What the search knows of the codebooks."""

    entries: Tensor
    """(N * K, D)."""

    square_norms: Tensor
    """Squared norms of the entries (N * K)."""

    cross: Tensor
    """Twice the inner products of entries of different codebooks, zero inside a codebook (N * K, N * K)."""


def compute_entry_products(entries: Tensor, *, out: EntryProducts | None = None) -> EntryProducts:
    """Return the inner products of codebook entries (N, K, D), float32; those in ``out``, if given, are overwritten."""
    num_codebooks, width, dim = entries.shape
    if out is not None and out.cross.device == entries.device:
        cross = out.cross
    else:
        cross = entries.new_zeros(num_codebooks * width, num_codebooks * width)
    # Neighbouring groups of 1, 2, 4... codebooks: one triangle of the matrix, half of the work.
    while width < len(cross):
        pairs = entries.reshape(-1, 2, width, dim)
        # (H, 2, W, D) -> (H, W, W)
        products = 2.0 * pairs[:, 0] @ pairs[:, 1].mT
        # (N * K, N * K) -> (2, W, 2, W, H)
        tiles = cross.view(len(pairs), 2, width, len(pairs), 2, width).diagonal(dim1=0, dim2=3)
        tiles[0, :, 1] = products.permute(1, 2, 0)
        tiles[1, :, 0] = products.permute(2, 1, 0)
        width *= 2
    entries = entries.flatten(0, 1)
    return EntryProducts(entries, entries.square().sum(dim=-1), cross)


def refine_codes(
    codes: Tensor, entry_scores: Tensor, products: EntryProducts, num_refinements: int, *, skip_settled: bool = True
) -> Tensor:
    """Return codes with a lower squared error: the lowest one if the codebooks are orthogonal, as a rule if nearly so.

    Args:
        codes: First choices (B, N), int64.
        entry_scores: |c|² - 2 <x, c> of each frame x and entry c (B, N, K), float32.
        products: Of the entries.
        num_refinements: Number of passes; each starts at the result of the one before.
        skip_settled: Leave a frame alone once a pass has not changed its codes, since further passes would not either.
            On a GPU this waits for the device once a pass.
    """
    codes = codes.clone()
    active = torch.arange(len(codes), device=codes.device)
    for _ in range(num_refinements):
        if len(active) == 0:
            break
        changed = []
        for frames in torch.split(active, _num_frames_at_once(entry_scores)):
            current = codes[frames]
            refined = _refine(current, entry_scores[frames], products.cross)
            codes[frames] = refined
            changed.append((refined != current).any(dim=-1))
        if skip_settled:
            active = active[torch.cat(changed)]
    return codes


def _num_frames_at_once(entry_scores: Tensor) -> int:
    num_codebooks, codebook_size = entry_scores.shape[1:]
    num_kept = _num_kept(num_codebooks, 1, codebook_size, codebook_size) + 1
    num_lookups = max((num_codebooks * num_kept // 2) ** 2, num_codebooks * codebook_size)
    return max((_GPU_LOOKUPS if entry_scores.is_cuda else _CPU_LOOKUPS) // num_lookups, 1)


def _num_kept(num_groups: int, num_members: int, num_options: int, codebook_size: int) -> int:
    """Return how many of its options each of ``num_groups`` groups of ``num_members`` codebooks keeps."""
    if num_groups == 1:
        return 1
    cutoff = 8 if codebook_size <= 16 else 16
    cutoff <<= (num_members.bit_length() - 1) // 2  # doubles whenever groups grow fourfold
    return min(num_options, cutoff, _MAX_OPTIONS)


def _refine(codes: Tensor, entry_scores: Tensor, cross: Tensor) -> Tensor:
    """Return the result of one pass for codes (B, N) and scores (B, N, K)."""
    num_codebooks, codebook_size = entry_scores.shape[1:]
    first_entries = torch.arange(num_codebooks, device=codes.device) * codebook_size
    current = codes + first_entries
    # The score of an entry if only its codebook changed.
    scores = embedding_bag(current, cross, mode="sum").view_as(entry_scores).add_(entry_scores)
    scores, kept = _keep_best(scores, _num_kept(num_codebooks, 1, codebook_size, codebook_size))
    # (B, N, I) -> (N, B, I)
    scores = scores.transpose(0, 1)
    # (B, N, I), (B, N) -> (N, B, P)
    entries = torch.cat([kept + first_entries[:, None], current[..., None]], dim=-1).transpose(0, 1).contiguous()
    # An option is a list of places in the entries of its group; at first each entry is an option.
    options = torch.arange(scores.size(-1), device=codes.device)[:, None].expand(*scores.shape, 1)
    while len(scores) > 1:
        scores, options, entries = _merge(scores, options, entries, cross, codebook_size)
    # (1, B, N * P), (1, B, 1, N) -> (B, N)
    return entries[0].gather(-1, options[0, :, 0]) - first_entries


def _merge(
    scores: Tensor, options: Tensor, entries: Tensor, cross: Tensor, codebook_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Join neighbouring groups and keep the best pairs of their options.

    Args:
        scores: (G, B, I).
        options: (G, B, I, L).
        entries: The entries among which the options choose, by codebook, each with the current one last (G, B, L * P).
        cross: Products of the entries.
        codebook_size: K.

    Returns:
        Scores (H, B, I'), options (H, B, I', 2 * L) and entries (H, B, 2 * L * P).
    """
    num_groups, num_frames, num_options, num_members = options.shape
    group_size = entries.size(-1)
    # The current entries as one more option.
    current = torch.arange(1, num_members + 1, device=options.device) * (group_size // num_members) - 1
    candidates = torch.cat([options, current.expand(num_groups, num_frames, 1, -1)], dim=2)
    products = _products(candidates[::2], candidates[1::2], entries[::2], entries[1::2], cross)
    # A score counts the other group's current entries, but now the other group changes as well.
    even_scores = scores[::2] - products[:, :, -1, :-1]
    odd_scores = scores[1::2] - products[:, :, :-1, -1]
    # (H, B, I) -> (H, B, I * I)
    scores = (products[:, :, :-1, :-1] + even_scores[:, :, None]).add_(odd_scores[..., None]).flatten(2)
    scores, best = _keep_best(scores, _num_kept(num_groups // 2, 2 * num_members, num_options**2, codebook_size))
    even = _take(options[::2], best % num_options)
    odd = _take(options[1::2], best.div(num_options, rounding_mode="floor"))
    return scores, torch.cat([even, odd + group_size], dim=-1), torch.cat([entries[::2], entries[1::2]], dim=-1)


def _take(options: Tensor, best: Tensor) -> Tensor:
    """Return ``options`` (H, B, I, L) at ``best`` (H, B, I')."""
    return options.gather(2, best[..., None].expand(-1, -1, -1, options.size(-1)))


def _products(even: Tensor, odd: Tensor, even_entries: Tensor, odd_entries: Tensor, cross: Tensor) -> Tensor:
    """Return twice the inner products (H, B, I odd, I even) of options (H, B, I, L) of neighbouring groups."""
    even, even_entries = _drop_unused(even, even_entries)
    odd, odd_entries = _drop_unused(odd, odd_entries)
    # (H, B, U), (H, B, U) -> (H, B, U odd, U even); 32 bits address 46,340 entries
    index = odd_entries.int()[..., None] + (even_entries * len(cross)).int()[:, :, None]
    products = cross.view(-1).index_select(0, index.view(-1)).view_as(index)
    if even.size(-1) == 1:
        return products  # each entry is an option
    # -> (H, B, I odd, U even) -> (H, B, I even, I odd)
    return _sum_members(even, _sum_members(odd, products).mT).mT


def _drop_unused(options: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``options`` (H, B, I, L) and ``entries`` (H, B, L * P) without the entries that no option has.

    The best options of a large group differ little: about a fifth of its entries is left. Not on a GPU, which would
    have to wait for their number.
    """
    if options.size(-1) == 1 or options.is_cuda:
        return options, entries
    places = options.flatten(2)
    used = torch.zeros_like(entries).scatter_(-1, places, 1)
    ranks = used.cumsum(dim=-1) - 1
    num_used = int(ranks[..., -1].max()) + 1
    # Unused entries go to one more place, which is cut off.
    used_entries = entries.new_zeros(*entries.shape[:2], num_used + 1)
    used_entries.scatter_(-1, torch.where(used > 0, ranks, num_used), entries)
    return ranks.gather(-1, places).view_as(options), used_entries[..., :-1]


def _sum_members(options: Tensor, table: Tensor) -> Tensor:
    """Return the sums (H, B, I, W) of the rows of ``table`` (H, B, U, W) that options (H, B, I, L) name."""
    num_pairs, num_frames, num_rows, width = table.shape
    first_rows = torch.arange(num_pairs * num_frames, device=table.device).view(num_pairs, num_frames, 1, 1) * num_rows
    sums = embedding_bag((options + first_rows).flatten(0, 2), table.reshape(-1, width), mode="sum")
    return sums.view(*options.shape[:3], width)


def _keep_best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` lowest of ``scores`` (..., I) and their places, in any order; I must be a power of two."""
    if scores.is_cuda:
        return scores.topk(count, largest=False, sorted=False)
    # NumPy's partition of plain numbers uses the vector units and takes a quarter of the time of `topk`. The place
    # travels in the 29 bits by which a float64 is longer than a float32; rounding takes them off again.
    keys = scores.double()
    keys.view(torch.int64).bitwise_or_(torch.arange(scores.size(-1)))
    keys.numpy().partition(count - 1, axis=-1)
    best = keys[..., :count]
    return best.float(), best.view(torch.int64) & (scores.size(-1) - 1)

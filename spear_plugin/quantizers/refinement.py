"""The joint search over all codebooks that improves the codes of a frame (MVQ, arXiv 2211.00508).

A code is a sum of one entry of each codebook, so its squared error is a sum of inner products of two kinds: of the frame
with entries, and of entries with entries. Both are looked up here; no vector of the frame's width is moved. The entry
products depend on the weights alone and are computed once.

The error that changing some codebooks would give is only needed up to a constant of the frame, and is called score.

Letters: B frames, D width, N codebooks, K entries of a codebook, P entries kept of a codebook and the current one,
G groups, H = G / 2 pairs of groups, L codebooks of a group, I (J) options of an even (odd) group and its current one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_MAX_OPTIONS: Final = 128  # per group; the largest cutoff of the search

# Look-ups done at once, which bounds the memory: 16 MiB (CPU, stays in the cache) and 1 GiB of indices.
_CPU_LOOKUPS: Final = 2**22
_GPU_LOOKUPS: Final = 2**28


@dataclass(frozen=True)
class EntryProducts:
    """What the search knows of the codebooks."""

    square_norms: Tensor
    """Squared norms of the entries (N, K)."""

    cross: Tensor
    """Twice the inner products of entries of different codebooks, zero inside a codebook (N * K, N * K)."""


def compute_entry_products(entries: Tensor) -> EntryProducts:
    """Return the inner products of the codebook entries (N, K, D), float32."""
    num_codebooks, codebook_size, dim = entries.shape

    num_entries = num_codebooks * codebook_size

    cross = entries.new_zeros(num_entries, num_entries)

    # Neighbouring groups of 1, 2, 4... codebooks: together half of the symmetric matrix, which saves half of the work.
    width = codebook_size
    while width < num_entries:
        pairs = entries.reshape(-1, 2, width, dim)

        products = 2.0 * pairs[:, 0] @ pairs[:, 1].mT
        # (H, W, W)

        tiles = cross.view(len(pairs), 2, width, len(pairs), 2, width).diagonal(dim1=0, dim2=3)
        # (2, W, 2, W, H)

        tiles[0, :, 1] = products.permute(1, 2, 0)
        tiles[1, :, 0] = products.permute(2, 1, 0)

        width *= 2

    return EntryProducts(entries.square().sum(dim=-1), cross)


def refine_codes(
    codes: Tensor, entry_scores: Tensor, products: EntryProducts, num_refinements: int, *, skip_settled: bool = True
) -> Tensor:
    """Return codes (B, N), int64, whose squared error is lower than or equal to that of ``codes`` (B, N), int64.

    :param entry_scores: |c|² - 2 <x, c> of each frame x and entry c (B, N, K), float32.
    :param num_refinements: The number of passes; each starts at the result of the one before.
    :param skip_settled: Leave a frame alone once a pass has not changed its codes (the search is deterministic, further
        passes would not either). On a GPU this waits for the device once a pass.
    """
    codes = codes.clone()

    active = torch.arange(len(codes), device=codes.device)

    for _ in range(num_refinements):
        changed = []

        for frames in active.split(_num_frames_at_once(codes, entry_scores)):
            current = codes[frames]

            refined = _refine(current, entry_scores[frames], products)

            codes[frames] = refined

            changed.append((refined != current).any(dim=-1))

        if skip_settled:
            active = active[torch.cat(changed)]

            if len(active) == 0:
                break

    return codes


def _num_frames_at_once(codes: Tensor, entry_scores: Tensor) -> int:
    num_codebooks, codebook_size = entry_scores.shape[1:]

    num_kept = _num_kept(num_codebooks, 1, codebook_size, codebook_size) + 1

    num_lookups = max((num_codebooks * num_kept // 2) ** 2, num_codebooks * codebook_size)

    return max((_GPU_LOOKUPS if codes.is_cuda else _CPU_LOOKUPS) // num_lookups, 1)


def _num_kept(num_groups: int, num_members: int, num_options: int, codebook_size: int) -> int:
    """Return how many options each of ``num_groups`` groups of ``num_members`` codebooks keeps."""
    if num_groups == 1:
        return 1

    cutoff = 8 if codebook_size <= 16 else 16

    cutoff <<= (num_members.bit_length() - 1) // 2  # doubles whenever the group grows fourfold

    return min(num_options, cutoff, _MAX_OPTIONS)


def _refine(codes: Tensor, entry_scores: Tensor, products: EntryProducts) -> Tensor:
    """Return the result of one pass for codes (B, N) and scores (B, N, K)."""
    num_codebooks, codebook_size = entry_scores.shape[1:]

    num_entries = num_codebooks * codebook_size

    index_type = torch.int32 if num_entries**2 <= torch.iinfo(torch.int32).max else torch.int64

    first_entries = torch.arange(0, num_entries, codebook_size, device=codes.device, dtype=index_type)

    current = codes.to(index_type) + first_entries

    # The score of each entry if only its codebook changed.
    scores = functional.embedding_bag(current, products.cross, mode="sum").view_as(entry_scores).add_(entry_scores)

    scores, entries = _keep_best(scores, _num_kept(num_codebooks, 1, codebook_size, codebook_size))

    # (B, N, I) -> (N, B, I)
    scores, entries = scores.transpose(0, 1), entries.transpose(0, 1).to(index_type) + first_entries[:, None, None]

    # The current entry comes last.
    kept = torch.cat([entries, current.T[:, :, None]], dim=-1)
    # (N, B, P)

    # An option of a group is the places of its entries in `kept`.
    choices = torch.arange(scores.size(-1), device=codes.device, dtype=index_type)[:, None].expand(*scores.shape, 1)

    while len(scores) > 1:
        scores, choices = _merge(scores, choices, kept, products.cross, codebook_size)

    # (1, B, 1, N) -> (N, B, 1)
    choices = choices[0].permute(2, 0, 1)

    return (kept.gather(-1, choices.long()).squeeze(-1).T - first_entries).to(codes.dtype)


def _merge(scores: Tensor, choices: Tensor, kept: Tensor, cross: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Join neighbouring groups and keep the best of all pairs of their options.

    :param scores: (G, B, I).
    :param choices: (G, B, I, L).
    :param kept: (N, B, P).
    :returns: Scores (H, B, I') and choices (H, B, I', 2 * L).
    """
    num_groups, num_frames, num_options = scores.shape

    even_scores, odd_scores = scores[::2], scores[1::2]

    even, odd = choices[::2], choices[1::2]

    products = _pair_products(_append_current(even, kept), _append_current(odd, kept), kept, cross)
    # (H, B, J + 1, I + 1)

    # So far the other group was the current one.
    even_scores = even_scores - products[:, :, -1, :-1]
    odd_scores = odd_scores - products[:, :, :-1, -1]

    scores = products[:, :, :-1, :-1] + even_scores[:, :, None, :]

    scores = scores.add_(odd_scores[:, :, :, None]).flatten(2)
    # (H, B, J * I)

    num_kept = _num_kept(num_groups // 2, 2 * choices.size(-1), num_options**2, codebook_size)

    scores, options = _keep_best(scores, num_kept)

    even_places = _take_options(even, options % num_options)
    odd_places = _take_options(odd, options.div(num_options, rounding_mode="floor"))

    return scores, torch.cat([even_places, odd_places], dim=-1)


def _append_current(choices: Tensor, kept: Tensor) -> Tensor:
    current = choices.new_full((1, 1, 1, 1), kept.size(-1) - 1)

    return torch.cat([choices, current.expand(*choices.shape[:2], 1, choices.size(-1))], dim=2)


def _take_options(choices: Tensor, options: Tensor) -> Tensor:
    """Return ``choices`` (H, B, I, L) at ``options`` (H, B, I')."""
    return choices.gather(2, options[..., None].expand(-1, -1, -1, choices.size(-1)))


def _pair_products(even: Tensor, odd: Tensor, kept: Tensor, cross: Tensor) -> Tensor:
    """Return twice the inner products of the options of neighbouring groups.

    :param even: Places of the entries of each option (H, B, I, L).
    :param odd: The same (H, B, J, L).
    :returns: (H, B, J, I).
    """
    num_pairs, num_frames, num_options, num_members = even.shape

    num_kept = kept.size(-1)

    kept = kept.view(num_pairs, 2, num_members, num_frames, num_kept)

    # Codebooks outermost: a look-up stays within one K x K tile for all frames, which a CPU's cache holds.
    index = (kept[:, 0] * len(cross))[:, :, None, :, :, None] + kept[:, 1][:, None, :, :, None, :]
    # (H, L, L, B, P, P)

    table = cross.view(-1).index_select(0, index.view(-1)).view(-1, num_kept)

    rows = torch.arange(0, len(table), num_kept, device=kept.device, dtype=kept.dtype)

    rows = rows.view(num_pairs, num_members, num_members, num_frames)

    # Sum over the even group's members, for each kept entry of the odd group.
    bags = rows.permute(0, 2, 3, 1)[:, :, :, None, :] + even[:, None]
    # (H, L, B, I, L)

    table = functional.embedding_bag(bags.view(-1, num_members), table, mode="sum")

    table = table.view(-1, num_options, num_kept).mT.reshape(-1, num_options)
    # (H * L * B * P, I)

    # Sum over the odd group's members.
    bags = rows.flatten()[: num_pairs * num_members * num_frames].view(num_pairs, num_members, num_frames)

    bags = bags.permute(0, 2, 1)[:, :, None, :] + odd
    # (H, B, J, L)

    products = functional.embedding_bag(bags.view(-1, num_members), table, mode="sum")

    return products.view(num_pairs, num_frames, odd.size(2), num_options)


def _keep_best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` lowest of ``scores`` (..., I) and their places, in no particular order; I is a power of two."""
    num_options = scores.size(-1)

    if scores.device.type != "cpu":
        return scores.topk(count, largest=False, sorted=False)

    # `topk` is slow on a CPU, NumPy's partition of plain numbers uses its vector units. A place fits into the 29 bits by
    # which a float64 is longer than a float32, and rounding removes it again.
    keys = scores.double()

    keys.view(torch.int64).bitwise_or_(torch.arange(num_options))

    keys.numpy().partition(count - 1, axis=-1)

    best = keys[..., :count]

    return best.float(), best.view(torch.int64) & (num_options - 1)

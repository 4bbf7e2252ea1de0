"""How well discrete units agree with phones, and what they cost (SpidR, arXiv 2512.20308; HuBERT, arXiv 2106.07447).

Phones and units are compared moment by moment, every 10 ms in the paper, by how often each phone meets each unit.

Letters: P phones, V units, M moments, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from spear_plugin.evaluation.codebooks import codebook_entropies, codebook_perplexity


@final
@dataclass(frozen=True, kw_only=True)
class UnitQuality:
    """What the units of a corpus say of its phones."""

    pnmi: float
    """Phone-normalized mutual information, in [0, 1]: the share of the phones' entropy that the units tell."""

    phone_purity: float
    """In [0, 1]: how often the phone is the one that its unit meets most often."""

    cluster_purity: float
    """In [0, 1]: how often the unit is the one that its phone meets most often."""

    perplexity: float
    """Of the units, frame by frame; from 1 to V."""

    num_active: int
    """Units that occur."""

    bitrate: float
    """In bits a second, of runs of equal units counted as one."""


def count_pairs(phones: Tensor, units: Tensor, *, num_phones: int, num_units: int) -> Tensor:
    """Return how often each phone meets each unit, (P, V) int64; counts of recordings add up.

    Args:
        phones: (M,) int64 in [0, P), the phone of each moment.
        units: (M,) int64 in [0, V), the unit of each moment.
        num_phones: P.
        num_units: V.

    Raises:
        ValueError: If there are not as many phones as units.
    """
    if phones.shape != units.shape:
        raise ValueError(
            f"`phones` must be of the shape of the units {tuple(units.shape)}, but have {tuple(phones.shape)} instead."
        )
    return torch.bincount(phones * num_units + units, minlength=num_phones * num_units).view(num_phones, num_units)


def phone_normalized_mutual_information(counts: Tensor) -> float:
    """Return I(phone; unit) / H(phone), in [0, 1]; 0 if only one phone occurs.

    Args:
        counts: (P, V).
    """
    entropy_of_phones, entropy_of_units, entropy_of_pairs = (
        codebook_entropies(table.reshape(1, -1)).item() for table in (counts.sum(dim=1), counts.sum(dim=0), counts)
    )
    if entropy_of_phones == 0:
        return 0.0
    information = entropy_of_phones + entropy_of_units - entropy_of_pairs
    return max(0.0, information / entropy_of_phones)  # rounding makes -1e-16 of independent ones


def phone_purity(counts: Tensor) -> float:
    """Return the accuracy, in [0, 1], of naming for each unit the phone that it meets most often.

    Args:
        counts: (P, V).
    """
    return (counts.amax(dim=0).sum() / counts.sum()).item()


def cluster_purity(counts: Tensor) -> float:
    """Return the accuracy, in [0, 1], of naming for each phone the unit that it meets most often.

    Args:
        counts: (P, V).
    """
    return (counts.amax(dim=1).sum() / counts.sum()).item()


def unit_bitrate(units: Iterable[Tensor], *, frame_rate_hz: float, num_units: int) -> float:
    """Return log2 V bits for each run of equal units, in bits a second.

    Args:
        units: Of each recording, (T,); a run ends with its recording.
        frame_rate_hz: Frames, and so units, a second.
        num_units: V, whether they all occur or not.
    """
    num_runs, num_frames = 0, 0
    for sequence in units:
        num_runs += sequence.unique_consecutive().numel()
        num_frames += sequence.numel()
    return num_runs * math.log2(num_units) * frame_rate_hz / num_frames


def unit_quality(counts: Tensor, units: Iterable[Tensor], *, frame_rate_hz: float) -> UnitQuality:
    """Return all measures.

    Args:
        counts: (P, V), how often each phone meets each unit.
        units: Of each recording, (T,) int64 in [0, V).
        frame_rate_hz: Frames a second.
    """
    sequences, num_units = list(units), counts.size(1)
    frequencies = torch.bincount(torch.cat(sequences), minlength=num_units)
    return UnitQuality(
        pnmi=phone_normalized_mutual_information(counts),
        phone_purity=phone_purity(counts),
        cluster_purity=cluster_purity(counts),
        perplexity=codebook_perplexity(frequencies[None]).item(),
        num_active=int((frequencies > 0).sum()),
        bitrate=unit_bitrate(sequences, frame_rate_hz=frame_rate_hz, num_units=num_units),
    )

"""Exchange with the package ``multi-quantization`` and with SPEAR's quantizer files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor

from spear_plugin.quantizers.config import MvqQuantizerConfig

_STATISTICS: Final = ("mean", "std")


def convert_mvq_quantizer_state_dict(state_dict: dict[str, object], config: MvqQuantizerConfig) -> dict[str, object]:
    """Return the state dict of a file of ours, of the package, or of SPEAR, with the names of ours.

    SPEAR keeps the statistics of the frames beside the quantizer's state dict or among its entries.
    """
    converted: dict[str, object] = {}

    for key, value in state_dict.items():
        if isinstance(value, Mapping):
            converted.update(cast("Mapping[str, object]", value))
        else:
            converted[key] = value

    if config.normalize:
        for key in _STATISTICS:
            statistic = converted.get(key)

            if isinstance(statistic, Tensor):
                converted[key] = statistic.flatten()

    return converted


def convert_to_multi_quantization(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict as the package reads it: it quantizes frames that are already standardized."""
    return {key: value for key, value in state_dict.items() if key not in _STATISTICS}


def pack_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Return the codes (..., N), uint8, of codebooks with at most 16 entries in the bytes of the package.

    :returns: (..., N / 2) for 16 entries; byte n is code 2n + 16 * code 2n + 1. In general as many codes share a byte as
        fit, the first one in the lowest bits. Larger codebooks take a byte each, their codes are returned as they are.
    """
    codes_per_byte = _codes_per_byte(codebook_size)

    if codes.size(-1) % codes_per_byte:
        raise ValueError(f"`codes` must be a multiple of {codes_per_byte} wide, but has shape {tuple(codes.shape)}.")

    shifts = _shifts(codes, codebook_size)

    return (codes.unflatten(-1, (-1, codes_per_byte)) << shifts).sum(dim=-1).to(torch.uint8)


def unpack_codes(packed: Tensor, codebook_size: int) -> Tensor:
    """Return the codes (..., N), uint8, in the bytes that :func:`pack_codes` made."""
    return (packed[..., None] >> _shifts(packed, codebook_size) & (codebook_size - 1)).flatten(-2)


def _codes_per_byte(codebook_size: int) -> int:
    return {2: 8, 4: 4, 16: 2}.get(codebook_size, 1)


def _shifts(x: Tensor, codebook_size: int) -> Tensor:
    codes_per_byte = _codes_per_byte(codebook_size)

    return torch.arange(codes_per_byte, device=x.device, dtype=torch.uint8) * (8 // codes_per_byte)

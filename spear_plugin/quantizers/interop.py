"""Exchange with the package ``multi-quantization`` and with SPEAR's quantizer files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from spear_plugin.quantizers.config import MvqQuantizerConfig

_STATISTICS: Final = ("mean", "std")


def convert_mvq_quantizer_state_dict(state_dict: dict[str, object], config: MvqQuantizerConfig) -> dict[str, object]:
    """Return the state dict of a file of ours, of the package or of SPEAR as a state dict of ours.

    SPEAR stores ``mean`` and ``std`` of the frames with the weights; here they may lie beside the state dict or in it.
    """
    converted: dict[str, object] = {}
    for key, value in state_dict.items():
        converted.update(value if isinstance(value, Mapping) else {key: value})
    for key in _STATISTICS:
        statistic = converted.get(key)
        if config.normalize and isinstance(statistic, Tensor):
            converted[key] = statistic.flatten()
    return converted


def convert_to_multi_quantization(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict as the package loads it; the package then expects standardized frames."""
    return {key: value for key, value in state_dict.items() if key not in _STATISTICS}


def pack_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Return codes (..., N), uint8, in the package's bytes, in which codebooks of 16 entries share a byte in pairs.

    Returns:
        (..., N / 2), code 2n + 16 * code 2n + 1; likewise four codes of 4 entries and eight of 2. Other sizes take a
        byte each: their codes are returned as they are.
    """
    shifts = _shifts(codebook_size, codes)
    if codes.size(-1) % len(shifts):
        raise ValueError(
            f"`codes` must be a multiple of {len(shifts)} wide, but has shape {tuple(codes.shape)} instead."
        )
    return (codes.view(*codes.shape[:-1], -1, len(shifts)) << shifts).sum(dim=-1).to(torch.uint8)


def unpack_codes(packed: Tensor, codebook_size: int) -> Tensor:
    """Return the codes (..., N), uint8, that :func:`pack_codes` packed."""
    return (packed[..., None] >> _shifts(codebook_size, packed) & (codebook_size - 1)).flatten(-2)


def _shifts(codebook_size: int, like: Tensor) -> Tensor:
    codes_per_byte = {2: 8, 4: 4, 16: 2}.get(codebook_size, 1)
    return torch.arange(codes_per_byte, device=like.device, dtype=torch.uint8) * (8 // codes_per_byte)

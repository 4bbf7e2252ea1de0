"""Small encoders of each family, and waveforms for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from spear_plugin.models.downstream import EncoderConfig
from tests.unit.models.spear.makers import small_config as small_spear
from tests.unit.models.spidr.makers import small_config as small_spidr

ENCODERS: Final = {
    "spear": EncoderConfig(spear=replace(small_spear(), target_streams=[])),
    "spidr": EncoderConfig(family="spidr", spear=None, spidr=small_spidr()),
    "log_mel": EncoderConfig(family="log_mel", spear=None),
}


def create_waveforms(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return noise (N, S), zero beyond the ends, and lengths (N,)."""
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = 0.1 * torch.randn(length, generator=generator)
    return waveforms, torch.tensor(lengths)

"""Small SPEAR models and batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spear_plugin.models.spear import SpearConfig, SpearModel, create_spear_model
from spear_plugin.models.zipformer import ZipformerConfig


def small_config(*, output_downsampling_factor: int = 1) -> SpearConfig:
    zipformer = ZipformerConfig(
        subsampling_channels=[4, 4, 8],
        downsampling_factors=[1, 2],
        num_layers=[1, 2],
        encoder_dims=[32, 32],
        feedforward_dims=[32, 32],
        kernel_sizes=[15, 15],
        num_heads=[2, 2],
        output_downsampling_factor=output_downsampling_factor,
    )
    return SpearConfig(zipformer=zipformer)


def create_small_model(*, output_downsampling_factor: int = 1) -> SpearModel:
    torch.manual_seed(0)
    return create_spear_model(small_config(output_downsampling_factor=output_downsampling_factor))


@dataclass
class Batch:
    waveforms: Tensor
    lengths: Tensor
    codes: dict[str, Tensor]
    domains: Tensor

    def loss_of(self, model: SpearModel) -> Tensor:
        return model(self.waveforms, self.lengths, self.codes, self.domains).loss


def create_batch(lengths: list[int]) -> Batch:
    """Return utterances of alternating domain with codes of a 50 Hz and a 25 Hz teacher; speech has no audio codes."""
    generator = torch.Generator().manual_seed(1)
    num_rows, num_samples = len(lengths), max(lengths)
    waveforms = torch.zeros((num_rows, num_samples))
    codes = {
        name: torch.full((num_rows, num_samples // hop, num_codebooks), -100, dtype=torch.int16)
        for name, hop, num_codebooks in (("speech", 320, 16), ("audio", 640, 8))
    }
    for i, length in enumerate(lengths):
        waveforms[i, :length] = 0.1 * torch.randn(length, generator=generator)
        for name, hop, num_codebooks in (("speech", 320, 16), ("audio", 640, 8)):
            if name == "speech" or i % 2 == 1:
                size = (length // hop, num_codebooks)
                codes[name][i, : size[0]] = torch.randint(256, size, generator=generator).short()
    return Batch(waveforms, torch.tensor(lengths), codes, torch.arange(num_rows) % 2)

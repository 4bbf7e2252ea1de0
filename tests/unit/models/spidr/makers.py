"""Small SpidR models and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from spear_plugin.models.spidr import (
    EmaConfig,
    FeatureExtractorConfig,
    OnlineCodebookConfig,
    SpidrConfig,
    SpidrEncoderConfig,
    SpidrModel,
    SpidrOutput,
    create_span_masker,
    create_spidr_model,
    standardize_waveforms,
)


def small_config(
    kind: Literal["spidr", "dinosr"] = "spidr", *, front_end: Literal["convolutions", "log_mel"] = "convolutions"
) -> SpidrConfig:
    """Return a model of three layers without dropout, of which the last two have a head."""
    return SpidrConfig(
        kind=kind,
        feature_extractor=FeatureExtractorConfig(kind=front_end, channels=[16] * 7),
        encoder=SpidrEncoderConfig(
            dim=32,
            num_layers=3,
            num_heads=4,
            feedforward_dim=64,
            pos_conv_kernel=25,
            pos_conv_groups=4,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        codebook=OnlineCodebookConfig(num_codebooks=2, codebook_size=8),
        ema=EmaConfig(start_decay=0.9, timescale=4.0),
        freeze_step=3,
    )


def create_small_model(config: SpidrConfig | None = None) -> SpidrModel:
    torch.manual_seed(0)
    return create_spidr_model(config or small_config())


@dataclass
class Batch:
    waveforms: Tensor
    lengths: Tensor
    mask: Tensor

    def loss_of(self, model: SpidrModel) -> SpidrOutput:
        return model(self.waveforms, self.lengths, self.mask)

    def train(self, model: SpidrModel, optimizer: Optimizer, step_nr: int) -> float:
        """Take a step on this batch alone and return its loss for each masked frame."""
        output = self.loss_of(model)
        loss = output.loss / output.num_masked
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.codebooks.update(output.statistics)
        model.update_ema(step_nr)
        return loss.item()


def create_batch(lengths: list[int], *, seed: int = 1, config: SpidrConfig | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    waveforms = torch.randn((len(lengths), max(lengths)), generator=generator)
    sizes = torch.tensor(lengths)
    mask = create_span_masker(config or small_config()).draw(lengths, generator)
    return Batch(standardize_waveforms(waveforms, sizes), sizes, mask)

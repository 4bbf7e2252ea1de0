"""Small Zipformers and batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from spear_plugin.models.zipformer import (
    ConvSubsampling,
    ZipformerConfig,
    ZipformerEncoder,
    create_conv_subsampling,
    create_zipformer,
)

SMALL = ZipformerConfig(
    num_mel_bins=20,
    subsampling_channels=[2, 3, 4],
    downsampling_factors=[1, 2, 4, 8, 1],
    num_layers=[1, 2, 1, 1, 1],
    encoder_dims=[16] * 5,
    feedforward_dims=[24] * 5,
    kernel_sizes=[5, 5, 3, 3, 7],
    num_heads=[2] * 5,
    query_head_dim=8,
    value_head_dim=6,
    pos_head_dim=4,
    pos_dim=12,
)


def make_config(**changes: Any) -> ZipformerConfig:
    return replace(SMALL, **changes)


def make_models(config: ZipformerConfig) -> tuple[ConvSubsampling, ZipformerEncoder]:
    """Return models in evaluation mode whose every parameter matters."""
    front_end, encoder = create_conv_subsampling(config), create_zipformer(config)

    for model in (front_end, encoder):
        enlarge_small_parameters(model)

    return front_end.eval(), encoder.eval()


@torch.no_grad()
def enlarge_small_parameters(model: Module) -> None:
    """Draw weights of unit gain: at the initial scale branches add so little that a fault hides in a tolerance."""
    for parameter in model.parameters():
        parameter.normal_(std=0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)


def make_fbank(lengths: Tensor, num_mel_bins: int = SMALL.num_mel_bins) -> Tensor:
    """Return noise, in the padding too, so that nothing may depend on what the padding holds."""
    return torch.randn(len(lengths), int(lengths.max()), num_mel_bins)

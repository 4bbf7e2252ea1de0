"""The tiny models of the authors' golden files in `golden/spidr`: torch 2.9.1, float32, one thread, no dropout.

Files hold dictionaries of tensors by the authors' code (facebookresearch/spidr at f695537). With other threads and
kernels their own values move by up to 5.2e-6, hence the tolerances of `assert_golden`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fairseq2.models.utils.checkpoint import set_model_state
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from torch import Tensor

from spear_plugin.models.spidr import (
    EmaConfig,
    FeatureExtractorConfig,
    OnlineCodebookConfig,
    SpidrConfig,
    SpidrEncoderConfig,
    SpidrModel,
    SpidrOutput,
    convert_spidr_state_dict,
    create_spidr_model,
)
from tests.common import GOLDEN_FOLDER, assert_close


def load_spidr_golden(name: str) -> Any:
    return torch.load(GOLDEN_FOLDER / "spidr" / f"{name}.pt", weights_only=True)


def assert_golden(actual: Tensor, expected: Tensor, message: str | None = None) -> None:
    assert_close(actual, expected, atol=2e-5, rtol=1e-4, message=message)


@dataclass
class Batch:
    waveforms: Tensor
    lengths: Tensor
    mask: Tensor
    frames: Tensor

    def loss_of(self, model: SpidrModel) -> SpidrOutput:
        return model(self.waveforms, self.lengths, self.mask)


def golden_batches() -> list[Batch]:
    """Return three batches of two utterances; the second one has no padding."""
    batches = load_spidr_golden("tiny_batches")["batches"]
    return [Batch(b["waveforms"], b["lengths"], b["mask"], b["frames"]) for b in batches]


def convert_config(theirs: dict[str, Any]) -> SpidrConfig:
    """Return our configuration for the authors' flat one, which is DinoSR's if it has no time scale."""
    channels, kernel_sizes, strides = (
        list(sizes) for sizes in zip(*theirs["extractor_conv_layer_config"], strict=True)
    )
    is_spidr = "ema_timescale" in theirs
    ema = EmaConfig(start_decay=theirs["ema_start_decay"], copied_parts=theirs["ema_exclude_layers"])
    if is_spidr:
        ema.timescale, ema.threshold = theirs["ema_timescale"], theirs["ema_threshold"]
    else:
        ema.curve, ema.final_decay, ema.final_step = "linear", theirs["ema_final_decay"], theirs["ema_final_step"]
    return SpidrConfig(
        kind="spidr" if is_spidr else "dinosr",
        feature_extractor=FeatureExtractorConfig(
            mode=theirs["extractor_mode"],
            channels=channels,
            kernel_sizes=kernel_sizes,
            strides=strides,
            bias=theirs["extractor_conv_bias"],
        ),
        encoder=SpidrEncoderConfig(
            dim=theirs["encoder_embed_dim"],
            num_layers=theirs["encoder_num_layers"],
            num_heads=theirs["encoder_num_heads"],
            feedforward_dim=theirs["encoder_ff_interm_features"],
            pos_conv_kernel=theirs["encoder_pos_conv_kernel"],
            pos_conv_depth=theirs["encoder_pos_conv_depth"],
            pos_conv_groups=theirs["encoder_pos_conv_groups"],
            projection_dropout=theirs["encoder_projection_dropout"],
            dropout=theirs["encoder_dropout"],
            attention_dropout=theirs["encoder_attention_dropout"],
            feedforward_dropout=theirs["encoder_ff_interm_dropout"],
            layer_drop=theirs["encoder_layer_drop"],
            layer_norm_first=theirs["encoder_layer_norm_first"],
            qkv_bias=theirs["encoder_qkv_bias"],
        ),
        codebook=OnlineCodebookConfig(
            num_codebooks=theirs["num_codebooks"],
            codebook_size=theirs["codebook_size"],
            decay=theirs["codebook_decay"],
        ),
        ema=ema,
        freeze_step=theirs["freeze_step"],
    )


def create_golden_model(theirs: dict[str, Any]) -> SpidrModel:
    """Return a model with the initial weights of all golden files."""
    config = convert_config(theirs)
    model = create_spidr_model(config)
    state_dict = convert_spidr_state_dict(load_spidr_golden("tiny_init")["state_dict"], config)
    set_model_state(model, ((k, v) for k, v in state_dict.items() if isinstance(v, Tensor)), NOOP_PROGRESS_REPORTER)
    return model

from __future__ import annotations

from spear_plugin.models.downstream.augmentation import SpecAugmentation
from spear_plugin.models.downstream.config import (
    CtcConfig,
    DownstreamConfig,
    EncoderConfig,
    SpecAugmentConfig,
    TaggingConfig,
)
from spear_plugin.models.downstream.encoder import FrameEncoder, LogMelEncoder, SpearEncoder, SpidrEncoder
from spear_plugin.models.downstream.model import CtcModel, LayerSum, TaggingModel
from spear_plugin.models.spear import create_spear_model
from spear_plugin.models.spear.fbank import NUM_MEL_BINS
from spear_plugin.models.spidr import create_spidr_model


def create_ctc_model(config: CtcConfig) -> CtcModel:
    """Create a speech recognizer with new weights on the current default device."""
    encoder = _create_encoder(config.encoder, config.spec_augment)
    return CtcModel(encoder, _create_layer_sum(config, encoder), config=config)


def create_tagging_model(config: TaggingConfig) -> TaggingModel:
    """Create an audio tagger with new weights on the current default device."""
    encoder = _create_encoder(config.encoder, config.spec_augment)
    return TaggingModel(encoder, _create_layer_sum(config, encoder), config=config)


def _create_layer_sum(config: DownstreamConfig, encoder: FrameEncoder) -> LayerSum | None:
    return LayerSum(encoder.num_layers) if config.layers == "weighted" else None


def _create_encoder(config: EncoderConfig, augment: SpecAugmentConfig | None) -> FrameEncoder:
    if config.spear is not None:
        return SpearEncoder(create_spear_model(config.spear), _create_augmentation(augment))
    if config.spidr is not None:
        # A frame every 20 ms instead of 10, and other channels than mel bins.
        channels_per_bin = config.spidr.encoder.dim / NUM_MEL_BINS
        augmentation = _create_augmentation(augment, frames_per_input=0.5, channels_per_bin=channels_per_bin)
        return SpidrEncoder(create_spidr_model(config.spidr), augmentation)
    return LogMelEncoder(_create_augmentation(augment))


def _create_augmentation(
    config: SpecAugmentConfig | None, *, frames_per_input: float = 1.0, channels_per_bin: float = 1.0
) -> SpecAugmentation | None:
    if config is None:
        return None
    return SpecAugmentation(
        num_time_masks=config.num_time_masks,
        max_time_frames=round(config.max_time_frames * frames_per_input),
        max_time_share=config.max_time_share,
        num_channel_masks=config.num_channel_masks,
        max_channels=round(config.max_channels * channels_per_bin),
    )

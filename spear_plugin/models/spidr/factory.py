from __future__ import annotations

from spear_plugin.models.spidr.codebook import OnlineCodebooks
from spear_plugin.models.spidr.config import EmaConfig, FeatureExtractorConfig, SpidrConfig, SpidrEncoderConfig
from spear_plugin.models.spidr.ema import DecayCurve, EmaUpdater, ExponentialDecay, LinearDecay
from spear_plugin.models.spidr.encoder import (
    EncoderLayer,
    FeedForward,
    PositionalConvolution,
    SelfAttention,
    SpidrEncoder,
)
from spear_plugin.models.spidr.frontend import (
    ConvLayer,
    FeatureExtractor,
    FeatureProjection,
    FrameGeometry,
    Normalization,
)
from spear_plugin.models.spidr.heads import CodeHeads
from spear_plugin.models.spidr.log_mel import LOG_MEL_GEOMETRY, NUM_LOG_MEL_CHANNELS, LogMelExtractor
from spear_plugin.models.spidr.masker import SpanMasker
from spear_plugin.models.spidr.model import SpidrModel


def create_spidr_model(config: SpidrConfig) -> SpidrModel:
    """Create a model with new weights on the current default device."""
    dim, codebook = config.encoder.dim, config.codebook
    return SpidrModel(
        *_create_front_end(config.feature_extractor, dim),
        _create_encoder(config.encoder),
        _create_encoder(config.encoder),
        OnlineCodebooks(
            codebook.num_codebooks,
            codebook.codebook_size,
            dim,
            decay=codebook.decay,
            initial_scale=codebook.initial_scale,
        ),
        CodeHeads(codebook.num_codebooks, codebook.codebook_size, dim),
        EmaUpdater(_create_curve(config.ema, config.freeze_step), config.ema.copied_parts),
        dim=dim,
        kind=config.kind,
        projection_dropout=config.encoder.projection_dropout,
        visible_share=config.masking.visible_share,
        freeze_step=config.freeze_step,
        config=config,
    )


def create_frame_geometry(config: SpidrConfig) -> FrameGeometry:
    """Return which samples the frames of a model see; needs no model."""
    return _create_geometry(config.feature_extractor)


def create_span_masker(config: SpidrConfig) -> SpanMasker:
    """Return what draws the masks for a model in training; needs no model."""
    masking = config.masking
    return SpanMasker(
        geometry=create_frame_geometry(config),
        probability=masking.probability,
        span=masking.span,
        min_spans=masking.min_spans,
        law=masking.law,
        spread=masking.spread,
    )


def _create_geometry(config: FeatureExtractorConfig) -> FrameGeometry:
    if config.kind == "log_mel":
        return LOG_MEL_GEOMETRY
    return FrameGeometry(tuple(config.kernel_sizes), tuple(config.strides))


def _create_front_end(
    config: FeatureExtractorConfig, dim: int
) -> tuple[FeatureExtractor | LogMelExtractor, FeatureProjection]:
    if config.kind == "log_mel":
        return LogMelExtractor(), FeatureProjection(NUM_LOG_MEL_CHANNELS, dim, is_normalized=True)
    return _create_feature_extractor(config), FeatureProjection(config.channels[-1], dim)


def _create_feature_extractor(config: FeatureExtractorConfig) -> FeatureExtractor:
    layers = []
    num_in_channels = 1
    for index, num_channels in enumerate(config.channels):
        normalization: Normalization = config.mode
        if config.mode == "group_norm" and index > 0:
            normalization = "none"
        layers.append(
            ConvLayer(
                num_in_channels,
                num_channels,
                config.kernel_sizes[index],
                config.strides[index],
                bias=config.bias,
                normalization=normalization,
            )
        )
        num_in_channels = num_channels
    return FeatureExtractor(layers, _create_geometry(config))


def _create_encoder(config: SpidrEncoderConfig) -> SpidrEncoder:
    return SpidrEncoder(
        PositionalConvolution(
            config.dim, config.pos_conv_kernel, depth=config.pos_conv_depth, num_groups=config.pos_conv_groups
        ),
        [_create_layer(config) for _ in range(config.num_layers)],
        config.dim,
        dropout=config.dropout,
        layer_drop=config.layer_drop,
        layer_norm_first=config.layer_norm_first,
    )


def _create_layer(config: SpidrEncoderConfig) -> EncoderLayer:
    return EncoderLayer(
        SelfAttention(config.dim, config.num_heads, qkv_bias=config.qkv_bias, dropout=config.attention_dropout),
        FeedForward(config.dim, config.feedforward_dim, dropout=config.feedforward_dropout),
        config.dim,
        dropout=config.dropout,
        layer_norm_first=config.layer_norm_first,
    )


def _create_curve(config: EmaConfig, freeze_step: int) -> DecayCurve:
    if config.curve == "linear":
        return LinearDecay(config.start_decay, config.final_decay, config.final_step, freeze_step)
    return ExponentialDecay(config.start_decay, config.timescale, config.threshold)

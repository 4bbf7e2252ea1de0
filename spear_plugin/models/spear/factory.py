from __future__ import annotations

from spear_plugin.models.spear.alignment import CodeAlignment
from spear_plugin.models.spear.config import DOMAINS, SpearConfig, TargetStreamConfig, output_frame_rate_hz
from spear_plugin.models.spear.heads import CodebookHead
from spear_plugin.models.spear.masker import FbankMasker
from spear_plugin.models.spear.model import SpearModel
from spear_plugin.models.zipformer import create_conv_subsampling, create_zipformer, num_whiteners
from spear_plugin.nn.training_state import TrainingState


def create_spear_model(config: SpearConfig) -> SpearModel:
    """Create a model with new weights on the current default device."""
    return SpearModel(
        create_conv_subsampling(config.zipformer),
        create_zipformer(config.zipformer),
        {stream.name: _create_head(config, stream) for stream in config.target_streams},
        FbankMasker(
            time_probability=config.masking.time_probability,
            time_span=config.masking.time_span,
            min_time_spans=config.masking.min_time_spans,
            channel_probability=config.masking.channel_probability,
            channel_span=config.masking.channel_span,
        ),
        TrainingState(num_whiteners(config.zipformer)),
        output_factor=2 * config.zipformer.output_downsampling_factor,
        loss_on_padding=config.loss_on_padding,
        reference_padding=config.reference_padding,
        config=config,
    )


def _create_head(config: SpearConfig, stream: TargetStreamConfig) -> CodebookHead:
    return CodebookHead(
        max(config.zipformer.encoder_dims),
        stream.num_codebooks,
        stream.codebook_size,
        alignment=CodeAlignment.between(stream.frame_rate_hz, output_frame_rate_hz(config)),
        alpha=config.alpha,
        domain_weights=[stream.weights.get(domain, 0.0) for domain in DOMAINS],
        init_scale=config.head_init_scale,
    )

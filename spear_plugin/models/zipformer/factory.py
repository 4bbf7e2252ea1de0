from __future__ import annotations

from spear_plugin.models.zipformer.attention import NonlinearAttention, RelativeAttentionWeights, SelfAttention
from spear_plugin.models.zipformer.config import ZipformerConfig
from spear_plugin.models.zipformer.encoder import Downsample, DownsampledStack, ZipformerEncoder, ZipformerStack
from spear_plugin.models.zipformer.layer import ConvolutionModule, FeedForward, ZipformerLayer
from spear_plugin.models.zipformer.regularization import Regularizers
from spear_plugin.models.zipformer.subsampling import ConvSubsampling
from spear_plugin.nn.schedules import Schedule

NUM_LAYER_WHITENERS = 11
NUM_FRONT_END_WHITENERS = 2


def num_whiteners(config: ZipformerConfig) -> int:
    """Return the number of whiteners in a front end and an encoder of these sizes."""
    return NUM_FRONT_END_WHITENERS + NUM_LAYER_WHITENERS * sum(config.num_layers)


def create_conv_subsampling(config: ZipformerConfig) -> ConvSubsampling:
    """Create the front end, whose output has the width of the first stack."""
    return ConvSubsampling(
        config.num_mel_bins, config.subsampling_channels, config.encoder_dims[0], _create_regularizers(config)
    )


def create_zipformer(config: ZipformerConfig) -> ZipformerEncoder:
    """Create the encoder behind the front end."""
    return ZipformerFactory(config).create_encoder()


def _create_regularizers(config: ZipformerConfig) -> Regularizers:
    return Regularizers(config.regularization, dropout_p=config.dropout_p, pos_dropout_p=config.pos_dropout_p)


class ZipformerFactory:
    def __init__(self, config: ZipformerConfig) -> None:
        self._config = config
        self._regularizers = _create_regularizers(config)

    def create_encoder(self) -> ZipformerEncoder:
        config = self._config

        encoders = [self.create_stack(index) for index in range(config.num_stacks)]

        factor = config.output_downsampling_factor

        return ZipformerEncoder(
            encoders,
            config.pos_dim,
            None if factor == 1 else Downsample(factor),
            feature_mask_p=self._regularizers.feature_mask_p,
        )

    def create_stack(self, index: int) -> ZipformerStack | DownsampledStack:
        config = self._config

        stack = ZipformerStack(
            [self.create_layer(index, layer_index) for layer_index in range(config.num_layers[index])],
            config.encoder_dims[index],
            self._regularizers.pos_dropout_p,
            None if config.encoder_unmasked_dims is None else config.encoder_unmasked_dims[index],
        )

        factor = config.downsampling_factors[index]

        return stack if factor == 1 else DownsampledStack(stack, factor, self._regularizers.create_bypass_limits())

    def create_layer(self, stack_index: int, layer_index: int = 0) -> ZipformerLayer:
        config, regularizers = self._config, self._regularizers

        dim = config.encoder_dims[stack_index]
        num_heads = config.num_heads[stack_index]
        inner_dim = config.feedforward_dims[stack_index]
        kernel_size = config.kernel_sizes[stack_index]

        def create_self_attention() -> SelfAttention:
            return SelfAttention(dim, num_heads, config.value_head_dim, regularizers)

        def create_feed_forward(inner_dim: int) -> FeedForward:
            return FeedForward(dim, inner_dim, regularizers)

        def create_convolution() -> ConvolutionModule:
            return ConvolutionModule(dim, kernel_size, regularizers)

        return ZipformerLayer(
            RelativeAttentionWeights(
                dim, num_heads, config.query_head_dim, config.pos_head_dim, config.pos_dim, regularizers
            ),
            (create_self_attention(), create_self_attention()),
            NonlinearAttention(dim, 3 * dim // 4, regularizers),
            (
                create_feed_forward(3 * inner_dim // 4),
                create_feed_forward(inner_dim),
                create_feed_forward(5 * inner_dim // 4),
            ),
            (create_convolution(), create_convolution()),
            dim,
            regularizers,
            self._create_layer_skip(stack_index, layer_index),
        )

    def _create_layer_skip(self, stack_index: int, layer_index: int) -> Schedule:
        """Return the share of utterances that skip a layer.

        Half of them do until it is the layer's turn, stack after stack and layer after layer; downsampled layers, which
        matter less, are skipped more often in the end.
        """
        config = self._config

        turn = self._regularizers.warmup_batches / (config.num_stacks + 1)
        share = turn / config.num_layers[stack_index]
        begin = turn * (stack_index + 1) + layer_index * share

        last = 0.035 * config.downsampling_factors[stack_index] ** 0.5

        return self._regularizers.create_layer_skip((begin, 0.5), (begin + share, last))

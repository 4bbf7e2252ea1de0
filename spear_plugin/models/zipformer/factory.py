from __future__ import annotations

from spear_plugin.models.zipformer.attention import NonlinearAttention, RelativeAttentionWeights, SelfAttention
from spear_plugin.models.zipformer.config import ZipformerConfig
from spear_plugin.models.zipformer.encoder import Downsample, DownsampledStack, ZipformerEncoder, ZipformerStack
from spear_plugin.models.zipformer.layer import ConvolutionModule, FeedForward, ZipformerLayer
from spear_plugin.models.zipformer.subsampling import ConvSubsampling


def create_conv_subsampling(config: ZipformerConfig) -> ConvSubsampling:
    """Create the front end, whose output has the width of the first stack."""
    return ConvSubsampling(
        config.num_mel_bins, config.subsampling_channels, config.encoder_dims[0], dropout_p=config.dropout_p
    )


def create_zipformer(config: ZipformerConfig) -> ZipformerEncoder:
    """Create the encoder behind the front end."""
    return ZipformerFactory(config).create_encoder()


class ZipformerFactory:
    def __init__(self, config: ZipformerConfig) -> None:
        self._config = config

    def create_encoder(self) -> ZipformerEncoder:
        config = self._config

        encoders = [self.create_stack(index) for index in range(config.num_stacks)]

        factor = config.output_downsampling_factor

        return ZipformerEncoder(encoders, config.pos_dim, None if factor == 1 else Downsample(factor))

    def create_stack(self, index: int) -> ZipformerStack | DownsampledStack:
        config = self._config

        layers = [self.create_layer(index) for _ in range(config.num_layers[index])]

        stack = ZipformerStack(layers, config.encoder_dims[index], config.pos_dropout_p)

        factor = config.downsampling_factors[index]

        return stack if factor == 1 else DownsampledStack(stack, factor)

    def create_layer(self, stack_index: int) -> ZipformerLayer:
        config = self._config

        dim = config.encoder_dims[stack_index]
        num_heads = config.num_heads[stack_index]
        inner_dim = config.feedforward_dims[stack_index]
        kernel_size = config.kernel_sizes[stack_index]

        def create_self_attention() -> SelfAttention:
            return SelfAttention(dim, num_heads, config.value_head_dim)

        def create_feed_forward(inner_dim: int) -> FeedForward:
            return FeedForward(dim, inner_dim, config.dropout_p)

        return ZipformerLayer(
            RelativeAttentionWeights(dim, num_heads, config.query_head_dim, config.pos_head_dim, config.pos_dim),
            (create_self_attention(), create_self_attention()),
            NonlinearAttention(dim, 3 * dim // 4),
            (
                create_feed_forward(3 * inner_dim // 4),
                create_feed_forward(inner_dim),
                create_feed_forward(5 * inner_dim // 4),
            ),
            (ConvolutionModule(dim, kernel_size), ConvolutionModule(dim, kernel_size)),
            dim,
        )

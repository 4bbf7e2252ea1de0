"""Sizes of the Zipformer encoder as SPEAR trains it (arXiv 2510.25955, table 8)."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.utils.validation import Validatable, ValidationResult

from spear_plugin.models.zipformer.regularization import RegularizationConfig, plain_regularization


@dataclass(kw_only=True)
class ZipformerConfig(Validatable):
    """Holds the configuration of a convolutional front end and a Zipformer encoder.

    The lists have one entry per stack. The default values are those of SPEAR Base.
    """

    # Front end
    num_mel_bins: int = 128
    """The number of log-mel filters of the input, at 100 Hz."""

    subsampling_channels: list[int] = field(default_factory=lambda: [8, 32, 128])
    """The channels of the three convolutions of the front end, which halves the frame rate to 50 Hz."""

    # Stacks
    downsampling_factors: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 4, 2, 1])
    """The downsampling of each stack relative to 50 Hz."""

    num_layers: list[int] = field(default_factory=lambda: [1, 2, 3, 3, 1, 1, 1])
    """The number of layers of each stack."""

    encoder_dims: list[int] = field(default_factory=lambda: [512] * 7)
    """The width of each stack. Between stacks the channels are cut or padded with zeros."""

    feedforward_dims: list[int] = field(default_factory=lambda: [1536] * 7)
    """The inner width of the second feed-forward module of a layer; the first has 3/4 of it, the third 5/4."""

    kernel_sizes: list[int] = field(default_factory=lambda: [31, 31, 15, 15, 15, 31, 31])
    """The number of frames, odd, that the depthwise convolutions of each stack span."""

    num_heads: list[int] = field(default_factory=lambda: [8] * 7)
    """The number of attention heads of each stack."""

    # Attention
    query_head_dim: int = 32
    """The width of a query or key of one head."""

    value_head_dim: int = 12
    """The width of a value of one head."""

    pos_head_dim: int = 4
    """The width of a positional query of one head."""

    pos_dim: int = 48
    """The width, even, of the relative positional encoding."""

    # Output
    output_downsampling_factor: int = 1
    """The downsampling of the output: 1 gives 50 Hz, 2 gives 25 Hz."""

    # Regularization
    encoder_unmasked_dims: list[int] | None = None
    """The number of channels of each stack that feature masks never touch; None for half of each width."""

    dropout_p: float = 0.1
    """The dropout probability in the feed-forward modules and after the front end; the last one of a schedule."""

    pos_dropout_p: float = 0.15
    """The dropout probability on the positional encoding."""

    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    """The switches for what acts in training only."""

    @property
    def num_stacks(self) -> int:
        return len(self.downsampling_factors)

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        self._validate_stacks(result)

        if len(self.subsampling_channels) != 3:
            result.add_error(
                "`subsampling_channels` must have 3 entries, one per convolution, but has "
                f"{len(self.subsampling_channels)} instead."
            )

        # (M) -> stride 1, 2, 2 with a kernel of 3
        if self.num_mel_bins < 7:
            result.add_error(f"`num_mel_bins` must be at least 7, but is {self.num_mel_bins} instead.")

        if self.pos_dim % 2 != 0:
            result.add_error(f"`pos_dim` must be even, but is {self.pos_dim} instead.")

        if self.output_downsampling_factor not in (1, 2):
            result.add_error(
                "`output_downsampling_factor` must be 1 (50 Hz) or 2 (25 Hz), but is "
                f"{self.output_downsampling_factor} instead."
            )

        return result

    def _validate_stacks(self, result: ValidationResult) -> None:
        names = ["num_layers", "encoder_dims", "feedforward_dims", "kernel_sizes", "num_heads"]

        if self.encoder_unmasked_dims is not None:
            names.append("encoder_unmasked_dims")

        for name in names:
            values: list[int] = getattr(self, name)

            if len(values) != self.num_stacks:
                result.add_error(
                    f"`{name}` must have one entry per stack like `downsampling_factors`, which has {self.num_stacks}, "
                    f"but has {len(values)} instead."
                )

            if any(value < 1 for value in values):
                result.add_error(f"`{name}` must hold positive integers, but is {values} instead.")

        if not self.downsampling_factors or any(factor < 1 for factor in self.downsampling_factors):
            result.add_error(
                f"`downsampling_factors` must hold positive integers, but is {self.downsampling_factors} instead."
            )

        if any(size % 2 == 0 for size in self.kernel_sizes):
            result.add_error(f"`kernel_sizes` must be odd, but is {self.kernel_sizes} instead.")


def zipformer_base() -> ZipformerConfig:
    """Return the 93 M parameter size."""
    return ZipformerConfig()


def zipformer_large() -> ZipformerConfig:
    """Return the 327 M parameter size."""
    return ZipformerConfig(
        num_layers=[1, 2, 2, 3, 1, 1, 1],
        encoder_dims=[1024] * 7,
        feedforward_dims=[3072] * 7,
    )


def zipformer_xlarge() -> ZipformerConfig:
    """Return the 597 M parameter size."""
    return ZipformerConfig(
        num_layers=[1, 2, 3, 4, 1, 1, 1],
        encoder_dims=[1280] * 7,
        encoder_unmasked_dims=[768] * 7,
        feedforward_dims=[3840] * 7,
    )


def zipformer_tiny() -> ZipformerConfig:
    """Return our own small size, which a CPU core trains at 50 times real time.

    It trains for some thousand steps, where the authors' schedules would still be at their beginning.
    """
    return ZipformerConfig(
        subsampling_channels=[4, 8, 16],
        downsampling_factors=[1, 2, 4, 2, 1],
        num_layers=[1, 1, 2, 1, 1],
        encoder_dims=[128] * 5,
        feedforward_dims=[384] * 5,
        kernel_sizes=[31, 31, 15, 31, 31],
        num_heads=[4] * 5,
        regularization=plain_regularization(),
    )

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult

from spear_plugin.nn.masking import SpanLaw

SPIDR_FAMILY: Final = "spidr"

SpidrKind: TypeAlias = Literal["spidr", "dinosr"]


@dataclass(kw_only=True)
class FeatureExtractorConfig(Validatable):
    """Describes how samples become frames; of convolutions, the lists have one entry for each."""

    kind: Literal["convolutions", "log_mel"] = "convolutions"
    """``log_mel`` takes pairs of log-mel spectra instead, 35 ms every 20 ms, which need no training (for little data);
    the other fields do not count then."""

    mode: Literal["layer_norm", "group_norm"] = "layer_norm"
    """``layer_norm`` normalizes the channels of each frame after every convolution; ``group_norm`` each channel over
    time, padding included, after the first one alone."""

    channels: list[int] = field(default_factory=lambda: [512] * 7)
    """The output channels."""

    kernel_sizes: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    """The widths of the kernels; there is no padding."""

    strides: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    """The steps. The default values give frames of 400 samples every 320 samples, 25 ms every 20 ms."""

    bias: bool = False
    """If ``True``, convolutions have a bias."""

    @property
    def normalizes_over_time(self) -> bool:
        """Whether a frame depends on padding."""
        return self.kind == "convolutions" and self.mode == "group_norm"

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        sizes = {name: getattr(self, name) for name in ("channels", "kernel_sizes", "strides")}
        if len({len(values) for values in sizes.values()}) > 1 or not self.channels:
            lengths = ", ".join(f"{len(values)} `{name}`" for name, values in sizes.items())
            result.add_error(f"The lists must have as many entries, at least one, but there are {lengths} instead.")
        for name, values in sizes.items():
            if any(value < 1 for value in values):
                result.add_error(f"`{name}` must be at least 1, but are {values} instead.")
        return result


@dataclass(kw_only=True)
class SpidrEncoderConfig(Validatable):
    """Describes the Transformer, of which the teacher has a moving copy."""

    dim: int = 768
    """The width of frames."""

    num_layers: int = 12
    """The number of Transformer layers."""

    num_heads: int = 12
    """The number of attention heads."""

    feedforward_dim: int = 3072
    """The width within feed-forward networks."""

    pos_conv_kernel: int = 95
    """The frames that the positional convolutions would see together; each has a kernel of 1 / ``pos_conv_depth``."""

    pos_conv_depth: int = 5
    """The number of positional convolutions, one after the other."""

    pos_conv_groups: int = 16
    """The groups of channels of each of them."""

    projection_dropout: float = 0.0
    """The dropout on the student's input; the teacher gets all of it."""

    dropout: float = 0.1
    """The dropout before the first layer, after attention and after feed-forward networks."""

    attention_dropout: float = 0.1
    """The dropout on attention weights."""

    feedforward_dropout: float = 0.0
    """The dropout within feed-forward networks."""

    layer_drop: float = 0.0
    """The probability of skipping a layer in training."""

    layer_norm_first: bool = False
    """If ``True``, layers normalize their input and the encoder its output; else the other way round."""

    qkv_bias: bool = False
    """If ``True``, queries, keys and values have a bias, as in the original DinoSR."""

    def validate(self) -> ValidationResult:
        result, divisors = ValidationResult(), ("num_heads", "pos_conv_groups")
        sizes = ("dim", "num_layers", "feedforward_dim", "pos_conv_kernel", "pos_conv_depth", *divisors)
        _check_at_least(result, self, 1, sizes)
        for name in divisors:
            if (value := getattr(self, name)) > 0 and self.dim % value != 0:
                result.add_error(f"`dim` must be a multiple of `{name}` ({value}), but is {self.dim} instead.")
        for name in ("projection_dropout", "dropout", "attention_dropout", "feedforward_dropout", "layer_drop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                result.add_error(f"`{name}` must be in [0, 1), but is {getattr(self, name)} instead.")
        return result


@dataclass(kw_only=True)
class OnlineCodebookConfig(Validatable):
    """Describes the codebooks, which cluster the teacher's last layers during training."""

    num_codebooks: int = 8
    """The number of codebooks, and of heads; they belong to as many layers, the last ones."""

    codebook_size: int = 256
    """The number of codes of each codebook."""

    decay: float = 0.9
    """The share of its past that a code keeps when it is updated; from 1 on codebooks stay as they are."""

    initial_scale: float = 1.0
    """The standard deviation of the first codes in each dimension. The frames that they cluster have 1, and so has the
    paper, whose steps have 95,000 of them; with some hundred, less leaves fewer codes without any frame for ever."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        _check_at_least(result, self, 1, ("num_codebooks",))
        _check_at_least(result, self, 2, ("codebook_size",))
        _check_at_least(result, self, 0, ("decay",))
        if self.initial_scale <= 0.0:
            result.add_error(f"`initial_scale` must be positive, but is {self.initial_scale} instead.")
        return result


@dataclass(kw_only=True)
class EmaConfig(Validatable):
    """Describes how the teacher follows the student, by a decay that depends on the number of updates so far."""

    curve: Literal["exponential", "linear"] = "exponential"
    """``exponential`` (SpidR) approaches 1; ``linear`` (DinoSR) rises to ``final_decay`` and is 1 from ``freeze_step``
    on. With a decay of 1 the teacher stays as it is."""

    start_decay: float = 0.999
    """The decay before the first update."""

    timescale: float = 20_000.0
    """``exponential``: the updates in which the distance to 1 falls by a factor of e."""

    threshold: float = 1e-7
    """``exponential``: the distance at which the decay becomes 1."""

    final_decay: float = 0.9999
    """``linear``: the decay at ``final_step``."""

    final_step: int = 30_000
    """``linear``: the number of updates until the decay is ``final_decay``."""

    copied_parts: list[str] = field(default_factory=lambda: ["pos_conv_embed"])
    """Prefixes of parameters of the encoder that the teacher takes over as they are in each update."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        _check_in_unit_interval(result, self, ("start_decay", "final_decay"))
        if self.timescale <= 0.0:
            result.add_error(f"`timescale` must be positive, but is {self.timescale} instead.")
        _check_at_least(result, self, 0, ("threshold",))
        _check_at_least(result, self, 1, ("final_step",))
        return result


@dataclass(kw_only=True)
class SpanMaskingConfig(Validatable):
    """Describes the masks on the student's input, in frames. Each utterance of a batch has as many masked frames."""

    probability: float = 0.8
    """The share of frames that would be masked if spans never overlapped; 0.8 masks 51 to 57 %."""

    span: int = 10
    """The length of a span."""

    min_spans: int = 2
    """The smallest number of spans of an utterance."""

    law: SpanLaw = "static"
    """How the lengths of spans are distributed; ``static`` spans are all alike."""

    spread: float = 0.0
    """The smallest length of ``uniform`` spans, the standard deviation of ``normal`` ones."""

    visible_share: float = 0.0
    """The share of masked frames that the student predicts in training although it sees them; in the paper none.

    Heads are read on visible frames. With much speech what they learn on hidden ones carries over, with hours not.
    """

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        _check_in_unit_interval(result, self, ("probability", "visible_share"))
        _check_at_least(result, self, 1, ("span",))
        _check_at_least(result, self, 0, ("min_spans", "spread"))
        if self.law == "uniform" and self.spread > 2 * self.span:
            result.add_error(f"`spread` must be at most twice `span`, but is {self.spread} instead.")
        return result


@dataclass(kw_only=True)
class SpidrConfig(Validatable):
    """Holds the configuration of a SpidR (arXiv 2512.20308) or DinoSR model. The default values are SpidR's."""

    kind: SpidrKind = "spidr"
    """What the heads read: ``spidr`` the feed-forward outputs of their layers, ``dinosr`` the encoder's output."""

    feature_extractor: FeatureExtractorConfig = field(default_factory=FeatureExtractorConfig)
    """The convolutions from samples to frames."""

    encoder: SpidrEncoderConfig = field(default_factory=SpidrEncoderConfig)
    """The Transformer of student and teacher."""

    codebook: OnlineCodebookConfig = field(default_factory=OnlineCodebookConfig)
    """The codebooks and their heads."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """The teacher's updates."""

    freeze_step: int = 200_000
    """The number of updates after which feature extractor and projection stay as they are."""

    masking: SpanMaskingConfig = field(default_factory=SpanMaskingConfig)
    """The masks that a recipe draws for this model."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.codebook.num_codebooks > self.encoder.num_layers:
            result.add_error(
                f"`codebook.num_codebooks` must be at most `encoder.num_layers` ({self.encoder.num_layers}), but is "
                f"{self.codebook.num_codebooks} instead."
            )
        _check_at_least(result, self, 0, ("freeze_step",))
        return result


def register_spidr_configs(container: DependencyContainer) -> None:
    """Register the model of the paper, its DinoSR, and ``tiny``, which trains on a CPU."""
    arch = ConfigRegistrar(container, SpidrConfig)
    arch("tiny")(_create_tiny)
    arch("base")(SpidrConfig)
    arch("dinosr_base")(_create_dinosr_base)


def _create_tiny() -> SpidrConfig:
    return SpidrConfig(
        feature_extractor=FeatureExtractorConfig(channels=[128] * 7),
        encoder=SpidrEncoderConfig(
            dim=128, num_layers=4, num_heads=4, feedforward_dim=512, pos_conv_kernel=25, pos_conv_groups=4
        ),
        codebook=OnlineCodebookConfig(num_codebooks=3, codebook_size=64),
        ema=EmaConfig(start_decay=0.99, timescale=1000.0),
    )


def _create_dinosr_base() -> SpidrConfig:
    return SpidrConfig(kind="dinosr", encoder=SpidrEncoderConfig(layer_drop=0.05), ema=EmaConfig(curve="linear"))


def _check_at_least(result: ValidationResult, config: object, minimum: int, names: Sequence[str]) -> None:
    for name in names:
        if getattr(config, name) < minimum:
            result.add_error(f"`{name}` must be at least {minimum}, but is {getattr(config, name)} instead.")


def _check_in_unit_interval(result: ValidationResult, config: object, names: Sequence[str]) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            result.add_error(f"`{name}` must be in [0, 1], but is {getattr(config, name)} instead.")

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult

from spear_plugin.models.spear.alignment import CodeAlignment
from spear_plugin.models.spear.fbank import NUM_MEL_BINS, num_fbank_frames
from spear_plugin.models.zipformer import (
    ZipformerConfig,
    zipformer_base,
    zipformer_large,
    zipformer_tiny,
    zipformer_xlarge,
)

SPEAR_FAMILY: Final = "spear"

DOMAINS: Final = ("speech", "audio")
"""The domains of utterances, in the order of their numbers in a batch."""


@dataclass(kw_only=True)
class TargetStreamConfig(Validatable):
    """Describes the codes of one teacher, which one head predicts. The defaults are the speech stream of the paper."""

    name: str = "speech"
    """The key of the codes in a batch and of the head in the state dict."""

    num_codebooks: int = 16
    """The number of codes of each frame."""

    codebook_size: int = 256
    """The number of entries of each codebook."""

    frame_rate_hz: float = 50.0
    """The frames of codes per second; the encoder's rate must be a multiple or a fraction of it."""

    weights: dict[str, float] = field(default_factory=lambda: {"speech": 1.0, "audio": 1.0})
    """The weight of this stream's loss by the utterance's domain; a domain that is not listed has weight 0."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if re.fullmatch("[a-z][a-z0-9_]*", self.name) is None:
            result.add_error(
                f"`name` must start with a letter and hold only lower-case letters, digits and underscores, but is "
                f"{self.name!r} instead."
            )
        if self.num_codebooks < 1:
            result.add_error(f"`num_codebooks` must be at least 1, but is {self.num_codebooks} instead.")
        if self.codebook_size < 2:
            result.add_error(f"`codebook_size` must be at least 2, but is {self.codebook_size} instead.")
        if self.frame_rate_hz <= 0.0:
            result.add_error(f"`frame_rate_hz` must be positive, but is {self.frame_rate_hz} instead.")
        domains = ", ".join(DOMAINS)
        for domain, weight in self.weights.items():
            if domain not in DOMAINS:
                result.add_error(f"`weights` must have domains as keys ({domains}), but has {domain!r} instead.")
            if weight < 0.0:
                result.add_error(f"`weights[{domain!r}]` must not be negative, but is {weight} instead.")
        return result


@dataclass(kw_only=True)
class MaskingConfig(Validatable):
    """Describes the masks on the log-mel input.

    The default values are those of the dual-domain and audio runs. The speech-only runs use a time probability of 0.5
    and channel spans of 15; the noisier token-mixing run of Base speech has the same values as those.
    """

    time_probability: float = 0.65
    """The share of frames that would be masked if spans never overlapped; 0.65 masks 49 % of a long utterance."""

    time_span: int = 10
    """The length of a span in frames of 10 ms."""

    min_time_spans: int = 2
    """The smallest number of spans of an utterance that is long enough for them."""

    channel_probability: float = 0.25
    """The same share for mel bins, which are set to zero over the whole utterance."""

    channel_span: int = 20
    """The length of a span in mel bins."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("time_probability", "channel_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                result.add_error(f"`{name}` must be in [0, 1], but is {getattr(self, name)} instead.")
        for name in ("time_span", "channel_span"):
            if getattr(self, name) < 1:
                result.add_error(f"`{name}` must be at least 1, but is {getattr(self, name)} instead.")
        if self.min_time_spans < 0:
            result.add_error(f"`min_time_spans` must not be negative, but is {self.min_time_spans} instead.")
        return result


def _dual_domain_streams() -> list[TargetStreamConfig]:
    audio = TargetStreamConfig(name="audio", num_codebooks=8, frame_rate_hz=25.0, weights={"speech": 0.0, "audio": 0.1})
    return [TargetStreamConfig(), audio]


@dataclass(kw_only=True)
class SpearConfig(Validatable):
    """Holds the configuration of a SPEAR model (arXiv 2510.25955).

    The default values are those of the dual-domain Base model.
    """

    zipformer: ZipformerConfig = field(default_factory=zipformer_base)
    """The sizes of the encoder."""

    target_streams: list[TargetStreamConfig] = field(default_factory=_dual_domain_streams)
    """The codes to predict. An empty list gives a model without heads, as the released weights need it."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """The masks of the input when codes are predicted."""

    alpha: float = 0.5
    """The weight of masked against unmasked frames: 2 ``alpha`` to 2 (1 - ``alpha``); 0.5 counts all frames alike."""

    head_init_scale: float = 1.0
    """Factor on the standard deviation of new heads, D^-0.5 in the authors' code. With 1 the loss begins well above
    that of guessing, and AdamW first shrinks the features; 0.1 suits short runs with it."""

    loss_on_padding: bool = False
    """If ``True``, the 3 or 4 code frames that reach beyond an utterance's last encoder frame are predicted from its
    padding, as in the authors' code; else they are left out."""

    reference_padding: bool = True
    """If ``True``, the encoder lets padding reach the last frames of an utterance when codes are predicted, as in the
    authors' code; else an utterance is encoded as if it were alone. Features are always those of the latter, unless
    asked for otherwise."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.zipformer.num_mel_bins != NUM_MEL_BINS:
            result.add_error(
                f"`zipformer.num_mel_bins` must be {NUM_MEL_BINS}, but is {self.zipformer.num_mel_bins} instead."
            )
        names = [stream.name for stream in self.target_streams]
        if len(set(names)) != len(names):
            result.add_error(f"`target_streams` must have distinct names, but has {names} instead.")
        if not 0.0 <= self.alpha <= 1.0:
            result.add_error(f"`alpha` must be in [0, 1], but is {self.alpha} instead.")
        if self.head_init_scale < 0.0:
            result.add_error(f"`head_init_scale` must not be negative, but is {self.head_init_scale} instead.")
        for stream in self.target_streams:
            try:
                CodeAlignment.between(stream.frame_rate_hz, output_frame_rate_hz(self))
            except (ValueError, ZeroDivisionError) as ex:
                result.add_error(f"Stream {stream.name!r}: {ex}")
        return result


def output_frame_rate_hz(config: SpearConfig) -> float:
    """Return the encoder's frames per second, 50 or 25."""
    return 50.0 / config.zipformer.output_downsampling_factor


def num_output_frames(num_samples: int, config: SpearConfig) -> int:
    """Return the encoder's frames for ``num_samples`` at 16 kHz, counted on the host; 0 if there are too few."""
    num_frames = max(0, (num_fbank_frames(num_samples) - 7) // 2)
    return -(-num_frames // config.zipformer.output_downsampling_factor)


def register_spear_configs(container: DependencyContainer) -> None:
    """Register the sizes of the paper (table 8) and ``tiny``, which trains on a CPU, as dual-domain models."""
    arch = ConfigRegistrar(container, SpearConfig)

    def register(name: str, create_zipformer_config: Callable[[], ZipformerConfig]) -> None:
        arch(name)(lambda: SpearConfig(zipformer=create_zipformer_config()))

    arch("tiny")(lambda: SpearConfig(zipformer=zipformer_tiny(), reference_padding=False))
    register("base", zipformer_base)
    register("large", zipformer_large)
    register("xlarge", zipformer_xlarge)

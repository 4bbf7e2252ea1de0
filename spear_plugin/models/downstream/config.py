"""What a model for a downstream task is made of: an encoder of any family below a small head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult

from spear_plugin.models.spear import SpearConfig, num_output_frames
from spear_plugin.models.spear.fbank import NUM_MEL_BINS, num_fbank_frames
from spear_plugin.models.spidr import SpidrConfig, create_frame_geometry

CTC_FAMILY: Final = "speech_ctc"

TAGGING_FAMILY: Final = "audio_tagging"

EncoderFamily: TypeAlias = Literal["spear", "spidr", "log_mel"]

LayerMode: TypeAlias = Literal["last", "weighted"]

SMALLEST_WINDOW: Final = 400
"""Samples below which there is no frame of any kind, 25 ms."""


@dataclass(kw_only=True)
class EncoderConfig(Validatable):
    """Describes the encoder. The default is SPEAR Base without heads."""

    family: EncoderFamily = "spear"
    """``spear``; ``spidr``, DinoSR among them; ``log_mel``: 256 log-mel energies at 50 Hz, no parameters."""

    spear: SpearConfig | None = field(default_factory=lambda: SpearConfig(target_streams=[]))
    """The model, if ``family`` is ``spear``; else ``None``."""

    spidr: SpidrConfig | None = None
    """The model, if ``family`` is ``spidr``; else ``None``."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name, config in (("spear", self.spear), ("spidr", self.spidr)):
            if (config is not None) != (name == self.family):
                rule = "set" if name == self.family else "None"
                result.add_error(f"`{name}` must be {rule} when `family` is '{self.family}'.")
        return result


@dataclass(kw_only=True)
class SpecAugmentConfig(Validatable):
    """Describes masks on the input in training (SpecAugment, arXiv 1904.08779), without time warping.

    The default values are those of icefall's recipe for LibriSpeech. They are in log-mel frames of 10 ms and 128 mel
    bins. SpidR, which has no log-mel input, is masked behind its convolutions: half as many frames, the same share of
    channels.
    """

    num_time_masks: int = 10
    """The number of masks over time; 0 for none."""

    max_time_frames: int = 100
    """The length of the longest one, in frames of 10 ms."""

    max_time_share: float = 0.15
    """The largest share of a batch's frames that all of them hide together."""

    num_channel_masks: int = 2
    """The number of masks over mel bins; 0 for none."""

    max_channels: int = 27
    """The width of the widest one, of 128 mel bins."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("num_time_masks", "max_time_frames", "num_channel_masks"):
            if (value := getattr(self, name)) < 0:
                result.add_error(f"`{name}` must not be negative, but is {value} instead.")
        if not 0.0 <= self.max_time_share <= 1.0:
            result.add_error(f"`max_time_share` must be in [0, 1], but is {self.max_time_share} instead.")
        if not 0 <= self.max_channels <= NUM_MEL_BINS:
            result.add_error(f"`max_channels` must be from 0 to {NUM_MEL_BINS}, but is {self.max_channels} instead.")
        return result


@dataclass(kw_only=True)
class DownstreamConfig(Validatable):
    """What all models for downstream tasks share."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The encoder."""

    layers: LayerMode = "last"
    """``last``: the head reads the encoder's output. ``weighted``: a learned weighted sum of all layers, as in SUPERB
    (arXiv 2105.01051)."""

    spec_augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    """Masks on the input in training; ``None`` for no masks."""

    dropout_p: float = 0.1
    """The dropout probability on what the head reads."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not 0.0 <= self.dropout_p < 1.0:
            result.add_error(f"`dropout_p` must be in [0, 1), but is {self.dropout_p} instead.")
        if self.layers == "weighted" and (spear := self.encoder.spear) is not None:
            # Layers are at 50 Hz whatever the output's rate, and narrow stacks are padded only on their way on.
            if spear.zipformer.output_downsampling_factor != 1:
                result.add_error("`layers` must be 'last' when the encoder's output is at 25 Hz.")
            if len(set(spear.zipformer.encoder_dims)) > 1:
                result.add_error("`layers` must be 'last' when the encoder's stacks differ in width.")
        return result


@dataclass(kw_only=True)
class CtcConfig(DownstreamConfig):
    """Describes a speech recognizer: frames to tokens by a linear layer, trained by CTC.

    Token 0 is the blank.
    """

    vocabulary_size: int = 500
    """The number of tokens, the blank among them."""

    def validate(self) -> ValidationResult:
        result = DownstreamConfig.validate(self)
        if self.vocabulary_size < 2:
            result.add_error(f"`vocabulary_size` must be at least 2, but is {self.vocabulary_size} instead.")
        return result


@dataclass(kw_only=True)
class TaggingConfig(DownstreamConfig):
    """Describes an audio tagger: the mean of an utterance's frames to a score for each label by a linear layer."""

    labels: list[str] = field(default_factory=lambda: ["sound"])
    """The labels, in the order of the scores."""

    def validate(self) -> ValidationResult:
        result = DownstreamConfig.validate(self)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            result.add_error("`labels` must be at least one, and each must stand there once.")
        return result


def num_encoder_frames(num_samples: int, config: EncoderConfig) -> int:
    """Return the encoder's frames for ``num_samples`` at 16 kHz, counted on the host; 0 if there are too few."""
    if config.spear is not None:
        return num_output_frames(num_samples, config.spear)
    if config.spidr is not None:
        return create_frame_geometry(config.spidr).num_frames(num_samples)
    return num_fbank_frames(num_samples) // 2 if num_samples >= SMALLEST_WINDOW else 0


def register_downstream_configs(container: DependencyContainer) -> None:
    """Register an architecture for each family; what it is made of follows from encoder and task."""
    ConfigRegistrar(container, CtcConfig)("base")(CtcConfig)
    ConfigRegistrar(container, TaggingConfig)("base")(TaggingConfig)

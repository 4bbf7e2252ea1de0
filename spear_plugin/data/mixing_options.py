"""What is mixed into examples, how often and how loud (SPEAR, arXiv 2510.25955, noise mixing and token mixing).

The published settings::

    first version, dual-domain     speech_probability 0.5, noise_probability 1, audio_probability 0.5,
                                   noise.snr_db [10, 20]
    first version, speech, Large   speech_probability 0.3, noise_probability 0.5, noise.snr_db [5, 20],
                                   noise.overlap [0.2, 0.8], utterance.targets clean
    second version                 speech_probability 0.5, noise_probability 0.8, audio_probability 0.5
                                   (0 for speech alone), noise.snr_db [10, 20], utterance.targets mixed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from spear_plugin.data.manifest import Domain, Seconds

Decibels: TypeAlias = float


@dataclass(kw_only=True)
class NoiseMixingOptions(Validatable):
    """Noise from recordings of its own. Targets stay those of the clean example."""

    manifest: Path | None = None
    """Manifest of the noise recordings; each is drawn as often as the others. Needs no codes."""

    snr_db: tuple[Decibels, Decibels] = (10.0, 20.0)
    """Signal-to-noise ratio, drawn uniformly between these: power of the whole example to that of the noise added."""

    overlap: tuple[float, float] = (1.0, 1.0)
    """Share of the example's time that gets noise, drawn uniformly between these; where it lies is random."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        _check_range(result, "snr_db", self.snr_db)
        _check_overlap(result, self.overlap)

        return result


@dataclass(kw_only=True)
class UtteranceMixingOptions(Validatable):
    """Another example of the batch as a second voice."""

    targets: Literal["clean", "mixed"] = "mixed"
    """``clean`` (first version): a part of the other example, targets stay those of the main one, as WavLM denoises.
    ``mixed`` (token mixing, second version): the other example as a whole after a delay, which may make the main one
    longer; targets are exchanged in proportion to the powers."""

    snr_db: tuple[Decibels, Decibels] = (-5.0, 5.0)
    """Ratio of the power of the main example to that of the other, drawn uniformly between these."""

    overlap: tuple[float, float] = (0.2, 0.5)
    """With ``clean``: share of the main example's time with a second voice, drawn uniformly between these."""

    max_delay: Seconds = 2.0
    """With ``mixed``: the other example begins between 0 and so many seconds after the main one, and before its end."""

    partner_domains: tuple[Domain, ...] = ("speech",)
    """Domains of the other example. The authors' code takes speech only, their paper also audio."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        _check_range(result, "snr_db", self.snr_db)
        _check_overlap(result, self.overlap)

        if not self.max_delay >= 0.0:
            result.add_error(f"`max_delay` must be at least 0, but is {self.max_delay}.")

        if not self.partner_domains:
            result.add_error("`partner_domains` must name at least one domain, but is empty.")

        return result


@dataclass(kw_only=True)
class MixingOptions(Validatable):
    """Mixing of noise and of other utterances into the examples of a batch; off by default.

    Every draw comes from (seed, epoch, example), so neither threads, ranks nor a resume change what is mixed.
    """

    speech_probability: float = 0.0
    """Share of speech examples that are mixed with something (``mixing_prob``)."""

    noise_probability: float = 0.8
    """Share of the mixed speech examples that get noise (``p_noise``); the others get another utterance."""

    audio_probability: float = 0.0
    """Share of audio examples that get noise; they never get an utterance."""

    noise: NoiseMixingOptions = field(default_factory=NoiseMixingOptions)

    utterance: UtteranceMixingOptions = field(default_factory=UtteranceMixingOptions)

    @property
    def has_noise(self) -> bool:
        return self.audio_probability > 0.0 or (self.speech_probability > 0.0 and self.noise_probability > 0.0)

    @property
    def has_utterances(self) -> bool:
        return self.speech_probability > 0.0 and self.noise_probability < 1.0

    @property
    def max_growth(self) -> Seconds:
        """How much longer than the longest example of its batch an example can become."""
        return self.utterance.max_delay if self.has_utterances and self.utterance.targets == "mixed" else 0.0

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("speech_probability", "noise_probability", "audio_probability"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                result.add_error(f"`{name}` must be in [0, 1], but is {value}.")

        if self.has_noise and self.noise.manifest is None:
            result.add_error("`noise.manifest` must be set to the path of a manifest, for noise to be mixed.")

        return result


def _check_range(result: ValidationResult, name: str, bounds: tuple[float, float]) -> None:
    if not -100.0 <= bounds[0] <= bounds[1] <= 100.0:
        result.add_error(f"`{name}` must be two numbers in [-100, 100], the lower one first, but is {list(bounds)}.")


def _check_overlap(result: ValidationResult, bounds: tuple[float, float]) -> None:
    if not 0.0 < bounds[0] <= bounds[1] <= 1.0:
        result.add_error(f"`overlap` must be two numbers in (0, 1], the lower one first, but is {list(bounds)}.")

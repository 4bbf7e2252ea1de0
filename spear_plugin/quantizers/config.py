from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from spear_plugin.quantizers.base import MAX_CODEBOOK_SIZE

MVQ_QUANTIZER_FAMILY: Final = "mvq_quantizer"
KMEANS_QUANTIZER_FAMILY: Final = "kmeans_quantizer"
RANDOM_PROJECTION_QUANTIZER_FAMILY: Final = "random_projection_quantizer"
CLASSIFIER_QUANTIZER_FAMILY: Final = "classifier_quantizer"


@dataclass(kw_only=True)
class QuantizerConfig(Validatable):
    """Holds what quantizers of all families have; the defaults fit SPEAR's speech teacher (WavLM-Large, layer 21)."""

    dim: int = 1024
    """Width of the teacher's frames."""

    normalize: bool = True
    """Whether frames are brought to zero mean and unit variance per channel, by stored statistics."""

    teacher: str = ""
    """Identity of the teacher whose frames the quantizer was trained on; empty if not known."""

    frame_rate_hz: float = 0.0
    """Frame rate of that teacher; 0 if not known."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.dim < 1:
            result.add_error(f"`dim` must be positive, but is {self.dim} instead.")
        return result


@dataclass(kw_only=True)
class MvqQuantizerConfig(QuantizerConfig):
    """Holds the sizes of a multi-codebook quantizer; the defaults are SPEAR's for speech."""

    codebook_size: int = 256
    """Number of entries of a codebook, a power of two up to 256: a code is a byte."""

    num_codebooks: int = 16
    """Number of codebooks, a power of two up to 128; the bytes of a frame."""

    @override
    def validate(self) -> ValidationResult:
        result = QuantizerConfig.validate(self)
        for field, largest in (("codebook_size", 256), ("num_codebooks", 128)):
            value = getattr(self, field)
            if not 1 <= value <= largest or value & (value - 1):
                result.add_error(f"`{field}` must be a power of two up to {largest}, but is {value} instead.")
        return result


@dataclass(kw_only=True)
class KMeansQuantizerConfig(QuantizerConfig):
    """Holds the sizes of a k-means quantizer; the defaults are HuBERT's for its second iteration (arXiv 2106.07447)."""

    codebook_size: int = 500
    """Number of clusters."""

    @override
    def validate(self) -> ValidationResult:
        result = QuantizerConfig.validate(self)
        _check_codebook_size(result, self.codebook_size)
        return result


@dataclass(kw_only=True)
class RandomProjectionQuantizerConfig(QuantizerConfig):
    """Holds the sizes of a random-projection quantizer; the defaults are BEST-RQ's (arXiv 2202.01855)."""

    codebook_size: int = 8192
    """Number of entries of a codebook."""

    num_codebooks: int = 1
    """Number of codebooks, each with a projection of its own."""

    projection_dim: int = 16
    """Width of the space in which frames and entries are compared."""

    seed: int = 42
    """Of projections and codebooks, which are drawn and never trained."""

    @override
    def validate(self) -> ValidationResult:
        result = QuantizerConfig.validate(self)
        _check_codebook_size(result, self.codebook_size)
        for field in ("num_codebooks", "projection_dim"):
            if (value := getattr(self, field)) < 1:
                result.add_error(f"`{field}` must be at least 1, but is {value} instead.")
        return result


@dataclass(kw_only=True)
class ClassifierQuantizerConfig(QuantizerConfig):
    """Holds the sizes of the heads of another model, as which a quantizer is used."""

    normalize: bool = False
    """Heads read frames as they are."""

    codebook_size: int = 256
    """Number of classes of each head."""

    num_codebooks: int = 1
    """Number of heads."""

    @override
    def validate(self) -> ValidationResult:
        result = QuantizerConfig.validate(self)
        _check_codebook_size(result, self.codebook_size)
        if self.num_codebooks < 1:
            result.add_error(f"`num_codebooks` must be at least 1, but is {self.num_codebooks} instead.")
        if self.normalize:
            result.add_error("`normalize` must be false: heads read frames as they are.")
        return result


def _check_codebook_size(result: ValidationResult, codebook_size: int) -> None:
    if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE:
        result.add_error(f"`codebook_size` must be from 2 to {MAX_CODEBOOK_SIZE}, but is {codebook_size} instead.")


def register_mvq_quantizer_configs(container: DependencyContainer) -> None:
    """Register the sizes of the SPEAR paper, named by the domain of the teacher."""
    arch = ConfigRegistrar(container, MvqQuantizerConfig)

    @arch("speech")
    def speech() -> MvqQuantizerConfig:
        return MvqQuantizerConfig()

    @arch("audio")
    def audio() -> MvqQuantizerConfig:
        return MvqQuantizerConfig(dim=1536, num_codebooks=8, normalize=False)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

MVQ_QUANTIZER_FAMILY: Final = "mvq_quantizer"


@dataclass(kw_only=True)
class MvqQuantizerConfig(Validatable):
    """Holds the sizes of a multi-codebook quantizer; the defaults are SPEAR's for speech (WavLM-Large, layer 21)."""

    dim: int = 1024
    """Width of the teacher's frames."""

    codebook_size: int = 256
    """Number of entries of a codebook, a power of two up to 256: a code is a byte."""

    num_codebooks: int = 16
    """Number of codebooks, a power of two up to 128; the bytes of a frame."""

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
        for field, largest in (("codebook_size", 256), ("num_codebooks", 128)):
            value = getattr(self, field)
            if not 1 <= value <= largest or value & (value - 1):
                result.add_error(f"`{field}` must be a power of two up to {largest}, but is {value} instead.")
        return result


def register_mvq_quantizer_configs(container: DependencyContainer) -> None:
    """Register the sizes of the SPEAR paper, named by the domain of the teacher."""
    arch = ConfigRegistrar(container, MvqQuantizerConfig)

    @arch("speech")
    def speech() -> MvqQuantizerConfig:
        return MvqQuantizerConfig()

    @arch("audio")
    def audio() -> MvqQuantizerConfig:
        return MvqQuantizerConfig(dim=1536, num_codebooks=8, normalize=False)

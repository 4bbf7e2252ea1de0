from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section
from recipes.stores import StoreCorpusSection

_CHOICES: Final = {
    "content": ("units", "probabilities", "features"),
    "units_from": ("codebook", "kmeans"),
    "dtype": ("float32", "float16"),
}


@dataclass(kw_only=True)
class KMeansSection(Validatable):
    """The clusters of ``units_from=kmeans``."""

    path: Path | None = None
    """``kmeans.safetensors`` of another OUT, such as that of the training corpus. If ``None``, they are fitted."""

    num_clusters: int = 256
    """How many are fitted."""

    fit_seconds: float = 3600.0
    """Audio that they are fitted to, drawn from the corpus; kept in memory as features, 0.6 GB an hour for Base."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not 2 <= self.num_clusters <= 32_767:
            result.add_error(f"`num_clusters` must be from 2 to 32767, but is {self.num_clusters}.")
        if self.fit_seconds <= 0:
            result.add_error(f"`fit_seconds` must be positive, but is {self.fit_seconds}.")
        return result


@dataclass(kw_only=True)
class SpidrUnitsConfig(Validatable):
    """Configuration of ``recipes.spidr.units``."""

    checkpoint: str | None = None
    """A card's name, or a run's folder, whose last checkpoint is taken."""

    layer: int = 6
    """The layer; the first is 1. The paper's best ones are 5 to 7."""

    content: str = "units"
    """``units``; ``probabilities`` that the layer's head gives to its codes; ``features`` of the layer."""

    units_from: str = "codebook"
    """``codebook``: the likeliest code by the layer's head. ``kmeans``: the nearest cluster of the layer's features."""

    deduplicate: bool = False
    """If ``True``, equal units that follow each other are one."""

    dtype: str = "float32"
    """Of probabilities and features: ``float32`` or ``float16``."""

    kmeans: KMeansSection = field(default_factory=KMeansSection)

    corpus: StoreCorpusSection = field(default_factory=StoreCorpusSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.checkpoint is None:
            result.add_error("`checkpoint` must be set to the name of a card or the folder of a run.")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                result.add_error(f"`{name}` must be one of {', '.join(choices)}, but is '{value}'.")
        if self.units_from == "kmeans" and self.kmeans.path is None and self.corpus.part is not None:
            result.add_error("`kmeans.path` must be set with `corpus.part`: all parts must have the same clusters.")
        return result

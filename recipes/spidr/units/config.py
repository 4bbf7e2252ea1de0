from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section
from recipes.features import FeatureSection
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
class SpidrUnitsConfig(FeatureSection):
    """Configuration of ``recipes.spidr.units``; other sources than SpidR and DinoSR have features, but no codebooks."""

    layer: int = 6
    """The layer; the first is 1. The paper's best ones are 5 to 7; teachers and log-mel energies have one."""

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

    @property
    @override
    def checkpoint_key(self) -> str:
        return "`checkpoint`"

    @property
    def is_of_features(self) -> bool:
        """Whether features are read, not the probabilities of a head."""
        return self.content == "features" or (self.content == "units" and self.units_from == "kmeans")

    @override
    def validate(self) -> ValidationResult:
        result = FeatureSection.validate(self)
        if self.kind in ("teacher", "log_mel") and not self.is_of_features:
            result.add_error(f"`units_from` must be kmeans, or `content` features, when `kind` is {self.kind}.")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                result.add_error(f"`{name}` must be one of {', '.join(choices)}, but is '{value}'.")
        if self.units_from == "kmeans" and self.kmeans.path is None and self.corpus.part is not None:
            result.add_error("`kmeans.path` must be set with `corpus.part`: all parts must have the same clusters.")
        return result

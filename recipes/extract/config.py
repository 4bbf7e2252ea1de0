from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.chunked_sources import ChunkSection
from recipes.common import default_common_section
from recipes.features import FeatureSection
from recipes.stores import StoreCorpusSection

_CHOICES: Final = {"dtype": ("float32", "float16"), "pooling": ("none", "mean"), "format": ("safetensors", "npz")}


@dataclass(kw_only=True)
class ExtractCorpusSection(StoreCorpusSection):
    """The audio; ``manifest`` may also be a folder, whose audio files are listed in OUT/manifest.tsv."""


@dataclass(kw_only=True)
class OutputSection(Validatable):
    """How features are written."""

    dtype: str = "float32"
    """``float32`` or ``float16``."""

    pooling: str = "none"
    """``none``, or ``mean`` over the frames of a file."""

    format: str = "safetensors"
    """``safetensors``: files of many tensors. ``npz``: a file for each id, with the array ``features``."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                result.add_error(f"`{name}` must be one of {', '.join(choices)}, but is '{value}'.")

        return result


@dataclass(kw_only=True)
class ExtractConfig(Validatable):
    """Configuration of ``recipes.extract``."""

    source: FeatureSection = field(default_factory=FeatureSection)

    layers: str | list[int] = "last"
    """``last``: the source's output, (T, D). ``all``, or a list of indices from 0: hidden layers, (L, T, D)."""

    chunks: ChunkSection | None = None
    """Recordings longer than a chunk are encoded chunk by chunk, such as ``{seconds: 30, overlap_seconds: 10}``; by
    default every recording in one pass."""

    corpus: ExtractCorpusSection = field(default_factory=ExtractCorpusSection)

    output: OutputSection = field(default_factory=OutputSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if isinstance(self.layers, str):
            if self.layers not in ("all", "last"):
                result.add_error(f"`layers` must be all, last or a list such as [0, 5], but is '{self.layers}'.")
        elif self.layers != sorted(set(self.layers)) or not self.layers or self.layers[0] < 0:
            result.add_error(f"`layers` must be indices from 0, ascending, each once, but are {self.layers}.")

        return result

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section
from recipes.features import NamedFeatureSection


@dataclass(kw_only=True)
class GallerySourceSection(NamedFeatureSection):
    """Features of one layer."""

    kinds: ClassVar[Sequence[str]] = ("model", "untrained", "teacher", "log_mel")

    layer: int = 0
    """The first is 1; 0 is the last."""

    @override
    def validate(self) -> ValidationResult:
        result = NamedFeatureSection.validate(self)
        if self.layer < 0:
            result.add_error(f"`layer` must not be negative, but is {self.layer}.")
        return result


@dataclass(kw_only=True)
class FramesSection(Validatable):
    """The frames of ``frames_by_phone.png``."""

    alignment: Path | None = None
    """By default ``NAME.alignment.tsv`` beside the manifest ``NAME.tsv``."""

    max_frames: int = 3000
    """Phones that are drawn, chosen at random."""

    perplexity: float = 30.0
    """Of t-SNE: about how many neighbours a frame keeps."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.max_frames < 10:
            result.add_error(f"`max_frames` must be at least 10, but is {self.max_frames}.")
        if not 1.0 <= self.perplexity < self.max_frames:
            result.add_error(f"`perplexity` must be from 1 to below `max_frames`, but is {self.perplexity}.")
        return result


@dataclass(kw_only=True)
class MaskedSection(Validatable):
    """The recording of ``masked_prediction.png``; of SPEAR only."""

    checkpoint: str | None = None
    """As in ``features``. If ``None``, nothing is predicted."""

    codes: Path | None = None
    """The code store of the teacher."""

    stream: str = "speech"
    """The target stream whose head predicts."""

    id: str | None = None
    """The recording; by default the first one of 3 to 6 seconds."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.checkpoint is not None and self.codes is None:
            result.add_error("`codes` must be the folder of a code store when `checkpoint` is set.")
        return result


@dataclass(kw_only=True)
class GalleryConfig(Validatable):
    """Configuration of ``recipes.gallery``."""

    features: list[GallerySourceSection] = field(default_factory=list)
    """What ``frames_by_phone.png`` compares."""

    corpus: CorpusSection = field(default_factory=CorpusSection)
    """The recordings of the first two pictures."""

    frames: FramesSection = field(default_factory=FramesSection)

    masked: MaskedSection = field(default_factory=MaskedSection)

    stores: dict[str, Path] = field(default_factory=dict)
    """Code stores by the names that they have in ``codebook_usage.png``."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not self.features and self.masked.checkpoint is None and not self.stores:
            result.add_error("At least one of `features`, `masked.checkpoint` and `stores` must be set.")
        if len(set(names := [section.name for section in self.features])) < len(names):
            result.add_error(f"`features` must have different names, but has {', '.join(names)}.")
        return result

    @property
    def alignment_path(self) -> Path:
        """The alignment of a validated configuration."""
        return self.frames.alignment or self.corpus.manifest_path.with_suffix(".alignment.tsv")

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section


@dataclass(kw_only=True)
class TaggingEvaluateConfig(Validatable):
    """Configuration of ``recipes.tagging.evaluate``."""

    checkpoint: str | None = None
    """A card's name, or the folder of a fine-tuning run, whose last checkpoint is taken."""

    corpus: CorpusSection = field(default_factory=CorpusSection)

    num_resamples: int = 2000
    """Of the bootstrap; hundreds of labels and tens of thousands of recordings take minutes with so many."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.checkpoint is None:
            result.add_error("`checkpoint` must be the name of a card or the folder of a run.")
        if self.num_resamples < 1:
            result.add_error(f"`num_resamples` must be at least 1, but is {self.num_resamples}.")
        return result

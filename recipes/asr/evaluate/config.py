from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section


@dataclass(kw_only=True)
class DecodingSection(Validatable):
    """How tokens are chosen; without a language model."""

    method: str = "greedy"
    """``greedy``: the likeliest path. ``beam``: the likeliest tokens, by a search over prefixes."""

    beam_size: int = 8
    """Prefixes kept in each frame."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.method not in ("greedy", "beam"):
            result.add_error(f"`method` must be greedy or beam, but is '{self.method}'.")
        if self.beam_size < 1:
            result.add_error(f"`beam_size` must be at least 1, but is {self.beam_size}.")
        return result


@dataclass(kw_only=True)
class AsrEvaluateConfig(Validatable):
    """Configuration of ``recipes.asr.evaluate``."""

    checkpoint: str | None = None
    """A card's name, or the folder of a fine-tuning run, whose last checkpoint is taken."""

    tokenizer: str | None = None
    """Folder or card of the tokenizer; by default that of the run, or the one that the card names."""

    corpus: CorpusSection = field(default_factory=CorpusSection)

    decoding: DecodingSection = field(default_factory=DecodingSection)

    num_resamples: int = 2000
    """Of the bootstrap."""

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

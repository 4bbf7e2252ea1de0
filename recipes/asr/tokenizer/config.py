from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section

_CHOICES: Final = {"kind": ("unigram", "char"), "spelling": ("spoken", "written")}


@dataclass(kw_only=True)
class TokenizerConfig(Validatable):
    """Configuration of ``recipes.asr.tokenizer``."""

    manifests: list[Path] = field(default_factory=list)
    """Whose transcripts the tokenizer is trained on."""

    kind: str = "unigram"
    """``unigram``: pieces of words. ``char``: characters; also what is made of too little text for so many pieces."""

    vocabulary_size: int = 500
    """Number of pieces, with the blank and the unknown token; of no use to ``char``, which has as many as it finds."""

    spelling: str = "spoken"
    """``spoken``: lower case, punctuation becomes white space. ``written``: as it stands, but for Unicode's NFKC."""

    name: str | None = None
    """Of the asset; by default from OUT."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not self.manifests:
            result.add_error("`manifests` must name at least one manifest with transcripts.")
        if self.vocabulary_size < 3:
            result.add_error(f"`vocabulary_size` must be at least 3, but is {self.vocabulary_size}.")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                result.add_error(f"`{name}` must be one of {', '.join(choices)}, but is '{value}'.")
        return result

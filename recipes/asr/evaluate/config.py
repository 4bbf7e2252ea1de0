from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.evaluating import EvaluationConfig


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
class AsrEvaluateConfig(EvaluationConfig):
    """Configuration of ``recipes.asr.evaluate``."""

    tokenizer: str | None = None
    """Folder or card of the tokenizer; by default that of the run, or the one that the card names."""

    decoding: DecodingSection = field(default_factory=DecodingSection)

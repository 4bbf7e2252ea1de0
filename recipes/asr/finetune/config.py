from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import ModelSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from recipes.finetuning import FinetuneConfig
from spear_plugin.models.downstream import CTC_FAMILY


@dataclass(kw_only=True)
class AsrFinetuneConfig(FinetuneConfig):
    """Configuration of ``recipes.asr.finetune``."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=CTC_FAMILY))

    tokenizer: str | None = None
    """Folder that ``recipes.asr.tokenizer`` wrote, or a card's name."""

    @override
    def validate(self) -> ValidationResult:
        result = FinetuneConfig.validate(self)
        if self.tokenizer is None:
            result.add_error("`tokenizer` must be a folder that `recipes.asr.tokenizer` wrote, or a card's name.")
        return result

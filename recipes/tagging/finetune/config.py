from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import ModelSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.finetuning import FinetuneConfig
from spear_plugin.data.options import ClassBalance
from spear_plugin.models.downstream import TAGGING_FAMILY


@dataclass(kw_only=True)
class MixupSection(Validatable):
    """Mixup (arXiv 1710.09412): a weighted sum of two recordings of a batch has the weighted sum of their labels."""

    probability: float = 0.5
    """Of mixing a batch; 0 for never."""

    alpha: float = 10.0
    """Weights are drawn from Beta(alpha, alpha); the larger, the closer to one half."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not 0.0 <= self.probability <= 1.0:
            result.add_error(f"`probability` must be in [0, 1], but is {self.probability}.")
        if self.alpha <= 0.0:
            result.add_error(f"`alpha` must be positive, but is {self.alpha}.")
        return result


@dataclass(kw_only=True)
class TaggingFinetuneConfig(FinetuneConfig):
    """Configuration of ``recipes.tagging.finetune``."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=TAGGING_FAMILY))

    labels: Path | None = None
    """File with one label a line, in the order of the model's scores; by default the labels of the training rows."""

    mixup: MixupSection = field(default_factory=MixupSection)

    balance: ClassBalance | None = None
    """If set, an example's class is drawn first, so that rare ones are heard more often."""

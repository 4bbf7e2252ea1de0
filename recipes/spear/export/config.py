from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section

LAYOUTS: Final = ("released", "training")


@dataclass(kw_only=True)
class SpearExportConfig(Validatable):
    """Configuration of ``recipes.spear.export``."""

    model: str = ""
    """Name of a card, or folder of a run (its last checkpoint is taken)."""

    layout: str = "released"
    """``released``: ``model.safetensors`` and ``config.json``, without heads. ``training``: ``model.pt`` with heads."""

    name: str | None = None
    """Name of the model in its cards. If ``None``, made of the name of OUT."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not self.model:
            result.add_error("`model` must be set to the name of a card or the folder of a run.")
        if self.layout not in LAYOUTS:
            result.add_error(f"`layout` must be one of {', '.join(LAYOUTS)}, but is '{self.layout}'.")
        return result

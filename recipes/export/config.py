from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section

FORMATS: Final = ("onnx", "torch")


@dataclass(kw_only=True)
class ExportConfig(Validatable):
    """Configuration of ``recipes.export``."""

    model: str = ""
    """Name of a card, folder of a run (its last checkpoint), or folder of a released SPEAR model."""

    format: str = "onnx"
    """``onnx``: ``model.onnx``. ``torch``: ``model.pt2``, which ``torch.export.load`` reads."""

    layers: str | list[int] = "last"
    """``last``: the model's output, of SpidR its last layer. ``all``, or a list of indices from 0: layers."""

    any_batch: bool = True
    """Whether the program takes batches of any number of utterances, or of one."""

    max_difference: float = 1e-3
    """How far the program may be from the model, relative to the largest value."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not self.model:
            result.add_error("`model` must be set to the name of a card or the folder of a run.")
        if self.format not in FORMATS:
            result.add_error(f"`format` must be one of {', '.join(FORMATS)}, but is '{self.format}'.")
        if isinstance(self.layers, str) and self.layers not in ("all", "last"):
            result.add_error(f"`layers` must be all, last or a list such as [0, 5], but is '{self.layers}'.")
        if self.max_difference <= 0.0:
            result.add_error(f"`max_difference` must be positive, but is {self.max_difference}.")
        return result

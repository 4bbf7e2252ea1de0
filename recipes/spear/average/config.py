from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section


@dataclass(kw_only=True)
class SpearAverageConfig(Validatable):
    """Configuration of ``recipes.spear.average``."""

    run: Path | None = None
    """Folder of a run of ``recipes.spear.pretrain``, or its folder of checkpoints."""

    models: list[str] = field(default_factory=list)
    """Instead of a run: models by the names of their cards or by their folders."""

    mode: Literal["checkpoints", "running"] = "checkpoints"
    """Mean of checkpoints, or of the snapshots in the run's running average."""

    last_n: int | None = None
    """How many checkpoints of the run: the last ones (``checkpoints``), or how many before the last the snapshots
    begin (``running``). If ``None``, all."""

    steps: list[int] = field(default_factory=list)
    """Instead of ``last_n``: the steps of the checkpoints. In ``running``, [N], or [M, N] for the snapshots after M."""

    name: str | None = None
    """Name of the result's card. If ``None``, made of the name of OUT."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if (self.run is None) == (not self.models):
            result.add_error("Either `run` must be set to a run's folder, or `models` to names of cards.")
        if self.models and (self.mode == "running" or self.last_n is not None or self.steps):
            result.add_error("`mode: running`, `last_n` and `steps` need a `run`, not `models`.")
        if self.last_n is not None and self.steps:
            result.add_error("Only one of `last_n` and `steps` can be set.")
        if self.last_n is not None and self.last_n < 1:
            result.add_error(f"`last_n` must be at least 1, but is {self.last_n}.")
        if self.steps != sorted(set(self.steps)) or any(step < 0 for step in self.steps):
            result.add_error(f"`steps` must be in ascending order, each once, but are {self.steps}.")
        if self.mode == "running" and len(self.steps) > 2:
            result.add_error(f"`steps` must be [N] or [M, N] with `mode: running`, but are {self.steps}.")
        return result

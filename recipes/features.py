"""Sources of frozen features behind one interface: our models, teachers, log-mel energies.

Letters: L layers, N batch, S samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.feature_sources import FeatureSource, LogMelSource, SpearSource, SpidrSource, TeacherSource
from recipes.models import create_untrained_encoder, find_card, load_encoder, run_step_of
from spear_plugin.models.spear import SPEAR_FAMILY
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel
from spear_plugin.teachers import TeacherConfig, load_teacher


@dataclass(kw_only=True)
class FeatureSection(Validatable):
    """One source of features."""

    kinds: ClassVar[Sequence[str]] = ("model", "teacher", "log_mel")

    kind: str = "model"
    """``model``: trained weights of SPEAR, SpidR or DinoSR; ``teacher``; ``log_mel``. Where sources are compared also
    ``untrained``: the same architecture with fresh weights."""

    checkpoint: str | None = None
    """For ``model`` and ``untrained``: an asset card's name, the output folder of a run (its last step is taken),
    ``RUN/checkpoints/step_N``, or a folder with the ``config.json`` and ``model.safetensors`` of a released model."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """For ``teacher``."""

    @property
    def checkpoint_key(self) -> str:
        """What messages call ``checkpoint``."""
        return "`source.checkpoint`"

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.kind not in self.kinds:
            result.add_error(f"`kind` must be one of {', '.join(self.kinds)}, but is '{self.kind}'.")

        if self.kind in ("model", "untrained") and not self.checkpoint:
            result.add_error(
                f"`checkpoint` must be the name of a card or the folder of a run when `kind` is {self.kind}."
            )

        return result


@dataclass(kw_only=True)
class NamedFeatureSection(FeatureSection):
    """One of several sources of features that are compared."""

    name: str = ""
    """Name in tables and file names."""

    @property
    @override
    def checkpoint_key(self) -> str:
        return f"features '{self.name}', `checkpoint`"

    @override
    def validate(self) -> ValidationResult:
        result = FeatureSection.validate(self)

        if not self.name or any(c in self.name for c in "/\\\t\n"):
            result.add_error(f"`name` must be a word that can stand in a file name, but is '{self.name}'.")

        return result


def open_source(
    section: FeatureSection, *, device: torch.device, seed: int = 0, output_only: bool = False
) -> FeatureSource:
    """Load what a section of the configuration describes.

    :param seed: For the fresh weights of ``untrained``.
    :param output_only: If True, the only layer of a model of ours is its output, at its own frame rate.
    :raises RecipeError: If a checkpoint is missing, damaged, or of a family that gives no features.
    :raises TeacherError: If a teacher cannot be loaded.
    """
    if section.kind == "log_mel":
        return LogMelSource()

    if section.kind == "teacher":
        return TeacherSource(load_teacher(section.teacher, device=device))

    assert section.checkpoint is not None  # by the validation of the section

    card = find_card(section.checkpoint, section.checkpoint_key, SPEAR_FAMILY, SPIDR_FAMILY)

    if section.kind == "model":
        model = load_encoder(card, section.checkpoint, device=device)
    else:
        model = create_untrained_encoder(card, section.checkpoint, seed=seed, device=device)

    source: FeatureSource

    if isinstance(model, SpidrModel):
        source = SpidrSource(model, output_only=output_only)
    else:
        source = SpearSource(model, output_only=output_only)

    source.checkpoint = run_step_of(card) if section.kind == "model" else None

    return source

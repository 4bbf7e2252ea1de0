"""Where targets come from: a teacher, and a quantizer of its frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from spear_plugin.data.codes import CodeStoreIdentity
from spear_plugin.quantizers import FrameQuantizer, load_quantizer, load_quantizer_config, quantizer_identity
from spear_plugin.teachers import Teacher, TeacherConfig, load_teacher


@dataclass(kw_only=True)
class QuantizerSection(Validatable):
    path: str | None = None
    """Folder of a quantizer that ``recipes.mvq.train`` wrote, or the name of a quantizer's card."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.path:
            result.add_error("`path` must be set to the folder or the card's name of a quantizer.")

        return result


@dataclass(kw_only=True)
class TargetSourceSection:
    """Which teacher and quantizer make codes; the same two sections as of ``recipes.mvq.encode``."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    quantizer: QuantizerSection = field(default_factory=QuantizerSection)


@final
@dataclass(frozen=True)
class TargetSource:
    """A teacher and a quantizer of its frames, both frozen and on one device."""

    teacher: Teacher

    quantizer: FrameQuantizer

    def identity(self, *, manifest: str) -> CodeStoreIdentity:
        """Return what tells the codes of this source from others; ``manifest`` is the digest of what is encoded."""
        return CodeStoreIdentity(
            teacher=self.teacher.name,
            quantizer=quantizer_identity(self.quantizer),
            num_codebooks=self.quantizer.num_codebooks,
            codebook_size=self.quantizer.codebook_size,
            frame_rate_hz=self.teacher.frame_rate_hz,
            manifest=manifest,
        )


def load_target_source(teacher: TeacherConfig, quantizer: QuantizerSection, *, device: torch.device) -> TargetSource:
    """Load a teacher and its quantizer.

    :raises RecipeError: If the quantizer was trained on frames of another teacher, layer or width.
    :raises TeacherError: If the teacher cannot be loaded.
    """
    loaded = load_teacher(teacher, device=device)

    return TargetSource(loaded, _load_matching_quantizer(quantizer, loaded).to(device))


def _load_matching_quantizer(section: QuantizerSection, teacher: Teacher) -> FrameQuantizer:
    assert section.path is not None  # validated
    config = load_quantizer_config(section.path)

    if config.teacher not in ("", teacher.name) or config.dim != teacher.dim:
        raise RecipeError(
            f"The quantizer {section.path} must be of teacher {teacher.name} (width {teacher.dim}), but is "
            f"of {config.teacher or 'an unnamed teacher'} (width {config.dim}). Change `teacher` or `quantizer.path`."
        )

    return load_quantizer(section.path)

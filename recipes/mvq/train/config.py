from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section
from spear_plugin.quantizers import QuantizerTrainingConfig
from spear_plugin.teachers import TeacherConfig


@dataclass(kw_only=True)
class FrameCorpusSection(CorpusSection):
    max_frames: int = 1_000_000
    """Frames to collect, with those held out; kept in memory as float16."""

    max_frames_per_file: int = 500
    """Frames to take from a file, at random, so that many files and speakers are seen."""

    @override
    def validate(self) -> ValidationResult:
        result = CorpusSection.validate(self)

        if self.max_frames < 100:
            result.add_error(f"`max_frames` must be at least 100, but is {self.max_frames}.")

        if self.max_frames_per_file < 1:
            result.add_error(f"`max_frames_per_file` must be at least 1, but is {self.max_frames_per_file}.")

        return result


@dataclass(kw_only=True)
class QuantizerSection:
    num_codebooks: int = 16
    """Codebooks, a power of two; bytes of a frame's codes."""

    normalize: bool = True
    """Whether frames are standardised per channel (SPEAR: for its speech teacher, not for its audio teacher)."""

    name: str | None = None
    """Name of the quantizer's card; made from the teacher's name by default."""

    compare_num_codebooks: list[int] = field(default_factory=list)
    """Further quantizers to train in the same way, for the report's error by number of codebooks only."""


@dataclass(kw_only=True)
class MvqTrainConfig(Validatable):
    """Configuration of ``recipes.mvq.train``."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    corpus: FrameCorpusSection = field(default_factory=FrameCorpusSection)

    quantizer: QuantizerSection = field(default_factory=QuantizerSection)

    training: QuantizerTrainingConfig = field(default_factory=QuantizerTrainingConfig)

    publish_metrics_every_n_steps: int = 100

    checkpoint_every_n_steps: int = 1000

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)
    """``common.seed`` decides which frames are drawn, ``training.seed`` the rest."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("publish_metrics_every_n_steps", "checkpoint_every_n_steps"):
            if (value := getattr(self, name)) < 1:
                result.add_error(f"`{name}` must be at least 1, but is {value}.")

        for count in (self.quantizer.num_codebooks, *self.quantizer.compare_num_codebooks):
            if not 1 <= count <= 128 or count & (count - 1):
                result.add_error(f"`quantizer.num_codebooks` must be a power of two up to 128, but is {count}.")

        return result

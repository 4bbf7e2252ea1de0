from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section
from spear_plugin.quantizers import (
    ClassifierQuantizerConfig,
    KMeansQuantizerConfig,
    MvqQuantizerConfig,
    QuantizerConfig,
    QuantizerTrainingConfig,
    RandomProjectionQuantizerConfig,
)
from spear_plugin.quantizers.kmeans_training import KMeansTrainingConfig
from spear_plugin.teachers import TeacherConfig

_MIN_FRAMES: Final = 100


@dataclass(kw_only=True)
class FrameCorpusSection(CorpusSection):
    max_frames: int = 1_000_000
    """Frames to collect, with those held out; kept in memory as float16."""

    max_bytes: int | None = None
    """Memory for the frames, 2 bytes a channel, if it is to hold fewer than ``max_frames``. If ``None``, no limit."""

    max_frames_per_file: int = 500
    """Frames to take from a file, at random, so that many files and speakers are seen."""

    def limit_frames(self, dim: int) -> int:
        """Return how many frames of this width to collect at most.

        :raises RecipeError: If ``max_bytes`` holds too few.
        """
        if self.max_bytes is None:
            return self.max_frames

        if (num_frames := self.max_bytes // (2 * dim)) < _MIN_FRAMES:
            raise RecipeError(
                f"`corpus.max_bytes` must hold at least {_MIN_FRAMES} frames of {2 * dim} bytes, but is "
                f"{self.max_bytes}. Raise it."
            )

        return min(self.max_frames, num_frames)

    @override
    def validate(self) -> ValidationResult:
        result = CorpusSection.validate(self)

        if self.max_frames < _MIN_FRAMES:
            result.add_error(f"`max_frames` must be at least {_MIN_FRAMES}, but is {self.max_frames}.")

        if self.max_frames_per_file < 1:
            result.add_error(f"`max_frames_per_file` must be at least 1, but is {self.max_frames_per_file}.")

        return result


KINDS: Final = ("mvq", "kmeans", "random_projection", "heads")

_KINDS_OF_OPTIONS: Final = {
    "num_codebooks": ("mvq", "kmeans", "random_projection"),  # heads have the sizes of the model
    "codebook_size": ("mvq", "kmeans", "random_projection"),
    "projection_dim": ("random_projection",),
    "head": ("heads",),
}


@dataclass(kw_only=True)
class QuantizerSection(Validatable):
    kind: str = "mvq"
    """``mvq``: multi-codebook quantizer (SPEAR). ``kmeans``: one codebook of cluster centres (HuBERT).
    ``random_projection``: fixed random directions, not trained (BEST-RQ). ``heads``: the codes that a teacher of the
    kind ``spear`` or ``spidr`` predicts itself, not trained either."""

    num_codebooks: int | None = None
    """Codebooks, codes of a frame; of mvq a power of two. By default 16 of mvq, 1 of the others; kmeans has only 1."""

    codebook_size: int | None = None
    """Entries of a codebook. By default 256 of mvq (4, 16 and 64 are possible), 500 of kmeans, 8192 of
    random_projection; above 256 a code takes two bytes."""

    head: str | None = None
    """Of heads: the target stream of a SPEAR model, if it has several; ``units`` of a SpidR model."""

    projection_dim: int | None = None
    """Of random_projection: width of the space in which frames and codebooks are compared; 16 by default."""

    normalize: bool = True
    """Whether frames are standardised per channel (SPEAR: for its speech teacher, not for its audio teacher); those of
    heads never are."""

    name: str | None = None
    """Name of the quantizer's card; made from the kind's and the teacher's names by default."""

    compare_num_codebooks: list[int] = field(default_factory=list)
    """Of mvq: further quantizers to train in the same way, for the report's error by number of codebooks only."""

    def create_config(
        self,
        *,
        dim: int,
        teacher: str,
        frame_rate_hz: float,
        seed: int,
        num_codebooks: int | None = None,
        codebook_size: int | None = None,
    ) -> QuantizerConfig:
        """Return the configuration of the quantizer, with the sizes in place of the section's if given.

        :param seed: Of a random projection.
        """
        common = {"dim": dim, "normalize": self.normalize, "teacher": teacher, "frame_rate_hz": frame_rate_hz}
        sizes = {
            "codebook_size": codebook_size or self.codebook_size,
            "num_codebooks": num_codebooks or self.num_codebooks,
            "projection_dim": self.projection_dim,
        }
        given: dict[str, Any] = {**common, **{name: size for name, size in sizes.items() if size is not None}}
        match self.kind:
            case "mvq":
                return MvqQuantizerConfig(**given)
            case "kmeans":
                given.pop("num_codebooks", None)
                return KMeansQuantizerConfig(**given)
            case "heads":
                return ClassifierQuantizerConfig(**given | {"normalize": False})
            case _:
                return RandomProjectionQuantizerConfig(seed=seed, **given)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.kind not in KINDS:
            result.add_error(f"`kind` must be one of {', '.join(KINDS)}, but is '{self.kind}'.")
            return result

        if self.kind == "kmeans" and self.num_codebooks not in (None, 1):
            result.add_error(f"`num_codebooks` must be 1 when `kind` is kmeans, but is {self.num_codebooks}.")

        for name, kinds in _KINDS_OF_OPTIONS.items():
            if self.kind not in kinds and getattr(self, name) is not None:
                result.add_error(f"`{name}` must not be set when `kind` is {self.kind}.")

        if self.kind != "mvq" and self.compare_num_codebooks:
            result.add_error(f"`compare_num_codebooks` must be empty when `kind` is {self.kind}: it has no use there.")

        if self.kind == "mvq" and self.codebook_size not in (None, 4, 16, 64, 256):
            result.add_error(
                f"`codebook_size` must be 4, 16, 64 or 256 when `kind` is mvq, but is {self.codebook_size}."
            )

        if not result.has_error():
            for count in (None, *self.compare_num_codebooks):
                config = self.create_config(dim=1, teacher="", frame_rate_hz=0.0, seed=0, num_codebooks=count)
                for error in config.validate().errors:
                    result.add_error(error)

        return result


@dataclass(kw_only=True)
class MvqTrainConfig(Validatable):
    """Configuration of ``recipes.mvq.train``."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    corpus: FrameCorpusSection = field(default_factory=FrameCorpusSection)

    quantizer: QuantizerSection = field(default_factory=QuantizerSection)

    training: QuantizerTrainingConfig = field(default_factory=QuantizerTrainingConfig)
    """Of ``mvq``; its seed is also that of a random projection."""

    kmeans: KMeansTrainingConfig = field(default_factory=KMeansTrainingConfig)
    """Of ``kmeans``."""

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

        return result

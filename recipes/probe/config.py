from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section
from recipes.features import NamedFeatureSection
from spear_plugin.evaluation import DEFAULT_L2, HeadTraining

LAYER_MODES: Final = ("best", "weighted")

_CATEGORY: Final = re.compile(r"(?!train|valid)[-_a-zA-Z0-9]+")


@dataclass(kw_only=True)
class SourceSection(NamedFeatureSection):
    """One kind of features."""

    kinds: ClassVar[Sequence[str]] = ("model", "untrained", "teacher", "log_mel")

    layers: str = "best"
    """``best``: a probe per layer, the layer chosen on validation. ``weighted``: one probe on their learned sum. Kinds
    of tasks other than ``frames`` and ``clips`` always read the learned sum."""

    @override
    def validate(self) -> ValidationResult:
        result = NamedFeatureSection.validate(self)

        if self.layers not in LAYER_MODES:
            result.add_error(f"`layers` must be one of {', '.join(LAYER_MODES)}, but is '{self.layers}'.")

        return result


@dataclass(kw_only=True)
class HeadSection(Validatable):
    """How heads are trained, of all kinds but ``frames`` and ``clips``."""

    learning_rates: list[float] = field(default_factory=lambda: [1e-2, 3e-3])
    """Of Adam; a head is trained with each, and validation chooses."""

    max_epochs: int = 60

    patience: int = 15
    """Epochs without a better validation score before training ends."""

    batch_size: int = 16
    """Items in a step."""

    num_batch_frames: int = 512
    """Frames in a step of ``timestamps``."""

    hidden_dim: int = 256
    """Of ``scenes``, ``timestamps`` and ``verification``."""

    thresholds: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.5])
    """Of the probability of an event in a frame, to choose from on validation."""

    median_seconds: list[float] = field(default_factory=lambda: [0.06, 0.14, 0.26])
    """Widths of the median filter over frames with an event, to choose from on validation."""

    onset_tolerance: float = 0.2
    """Seconds by which a right onset may differ."""

    segment_seconds: float = 1.0
    """Length of the segments of the segment-based F-measure."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("learning_rates", "thresholds", "median_seconds"):
            if not (values := getattr(self, name)) or min(values) <= 0:
                result.add_error(f"`{name}` must hold at least one number, all positive, but is {values}.")
        for name in ("max_epochs", "patience", "batch_size", "num_batch_frames", "hidden_dim"):
            if (value := getattr(self, name)) < 1:
                result.add_error(f"`{name}` must be at least 1, but is {value}.")
        for name in ("onset_tolerance", "segment_seconds"):
            if (value := getattr(self, name)) <= 0:
                result.add_error(f"`{name}` must be positive, but is {value}.")
        return result

    def training(self, batch_size: int | None = None) -> HeadTraining:
        """Return the settings as training takes them, perhaps with other batches."""
        return HeadTraining(
            learning_rates=self.learning_rates,
            max_epochs=self.max_epochs,
            patience=self.patience,
            batch_size=batch_size or self.batch_size,
        )


@dataclass(kw_only=True)
class ProbeSection(Validatable):
    """How examples are drawn and probes are fitted; the same for all sources."""

    l2_grid: list[float] = field(default_factory=lambda: list(DEFAULT_L2))
    """Penalties to choose from on validation."""

    max_iterations: int = 40
    """Of L-BFGS, for each fit."""

    time_shifts: list[float] = field(default_factory=lambda: [0.0, 0.02, 0.04, 0.06])
    """Seconds to add to an example's time when its frame is looked up, to choose from on validation for each layer.
    Forced alignments lag by 10 to 20 ms; and a model trained on left-aligned codes speaks in frame t of the codes'
    frame t, which is 35 ms before the centre of its receptive field."""

    ignored_labels: list[str] = field(default_factory=lambda: ["SIL", "+NSN+", "+SPN+"])
    """Labels of an alignment that are no phones."""

    max_task_minutes: float | None = 15.0
    """Audio read for each task, all splits together; which files is decided by a hash of their ids."""

    max_train_items: int = 8000

    max_valid_items: int = 3000

    max_test_items: int = 6000

    fold_repeats: int = 1
    """Cross-validations of a task with folds, over which accuracies are means. The first has the task's own folds; for
    the others files are divided by chance, with classes spread evenly. With some hundred items a single division moves
    differences of sources by several points. Leave it at 1 where folds keep files of one origin together."""

    max_batch_seconds: float = 60.0
    """Audio, with padding, in a batch of the extraction; a longer file is a batch of its own."""

    num_resamples: int = 2000
    """Of the bootstrap."""

    head: HeadSection = field(default_factory=HeadSection)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.l2_grid or min(self.l2_grid) < 0:
            result.add_error(f"`l2_grid` must hold at least one number, none negative, but is {self.l2_grid}.")

        if not self.time_shifts:
            result.add_error("`time_shifts` must hold at least one number of seconds, such as 0.0.")

        for name in (
            "max_iterations",
            "max_train_items",
            "max_valid_items",
            "max_test_items",
            "fold_repeats",
            "num_resamples",
        ):
            if (value := getattr(self, name)) < 1:
                result.add_error(f"`{name}` must be at least 1, but is {value}.")

        if self.max_batch_seconds <= 0:
            result.add_error(f"`max_batch_seconds` must be positive, but is {self.max_batch_seconds}.")

        return result


@final
@dataclass(frozen=True)
class TaskReference:
    """A task file, and what it is taken for."""

    path: Path

    kind: str | None
    """If ``None``, what the file says."""

    name: str


@dataclass(kw_only=True)
class ProbeConfig(Validatable):
    """Configuration of ``recipes.probe``."""

    features: list[SourceSection] = field(default_factory=list)
    """What to probe. Next to each ``model``, its untrained architecture and log-mel energies are added."""

    tasks: list[Path | dict[str, str]] = field(default_factory=list)
    """Task files, as ``recipes.corpus`` writes them, or {path: FILE, kind: KIND, name: NAME} for another kind or name
    than the file's own."""

    baselines: bool = True
    """Whether to add these two. They are the same for all checkpoints of a run."""

    publish: str | None = None
    """A word, such as probe: where the accuracies go in the run whose checkpoint a ``model`` is, at its step:
    ``RUN/tb/probe`` and ``RUN/metrics/probe.jsonl``. Models must be checkpoints of runs then. If ``None``, nowhere."""

    probe: ProbeSection = field(default_factory=ProbeSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.features:
            result.add_error("`features` must name at least one source, such as [{name: spear, checkpoint: RUN}].")

        if not self.tasks:
            result.add_error("`tasks` must name at least one task file.")

        if self.publish is not None and not _CATEGORY.fullmatch(self.publish):
            result.add_error(
                "`publish` must be a word of letters, digits, - and _ that does not begin with train or valid, which "
                f"training uses, but is '{self.publish}'."
            )

        for entry in self.tasks:
            if isinstance(entry, dict) and ("path" not in entry or not set(entry) <= {"path", "kind", "name"}):
                result.add_error(f"`tasks` must be paths, or mappings of path, kind and name, but has {entry}.")

                return result

        task_names = [task.name for task in self.task_references]

        for key, names in (("features", [s.name for s in self.features]), ("tasks", task_names)):
            if len(set(names)) < len(names):
                result.add_error(f"`{key}` must have different names, but has {', '.join(names)}.")

        return result

    @property
    def task_references(self) -> list[TaskReference]:
        """The tasks of a valid configuration."""
        entries = [entry if isinstance(entry, dict) else {"path": str(entry)} for entry in self.tasks]

        return [
            TaskReference(Path(entry["path"]), entry.get("kind"), entry.get("name") or Path(entry["path"]).stem)
            for entry in entries
        ]


def complete_sources(sections: list[SourceSection]) -> list[SourceSection]:
    """Return the sources with, for each trained model, its untrained architecture, and log-mel energies, added."""
    completed = list(sections)

    for section in sections:
        if section.kind != "model":
            continue

        if not any(s.kind == "untrained" and s.checkpoint == section.checkpoint for s in completed):
            name = f"{section.name}_untrained"

            completed.append(
                SourceSection(name=name, kind="untrained", checkpoint=section.checkpoint, layers=section.layers)
            )

        if not any(s.kind == "log_mel" for s in completed):
            completed.append(SourceSection(name="log_mel", kind="log_mel"))

    return completed

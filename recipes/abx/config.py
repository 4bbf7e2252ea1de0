from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection, default_common_section
from recipes.features import NamedFeatureSection

_DISTANCES: Final = ("auto", "angular", "euclidean", "kl_symmetric", "identical")


@dataclass(kw_only=True)
class AbxSourceSection(NamedFeatureSection):
    """Features or units, by layer."""

    kinds: ClassVar[Sequence[str]] = ("model", "untrained", "teacher", "log_mel", "store")

    kind: str = "model"
    """Those of ``recipes.extract``; ``untrained``: a model's architecture with fresh weights; ``store``."""

    store: Path | None = None
    """For ``store``: a folder that ``recipes.extract`` or ``recipes.spidr.units`` wrote, with all of the corpus."""

    distance: str = "auto"
    """Between frames: ``angular``, ``euclidean``, ``kl_symmetric`` of probabilities, ``identical`` (0 or 1) of units.
    ``auto``: ``identical`` for units, else ``angular``."""

    time_shift: float = 0.0
    """Seconds to add to the times of phones when their frames are looked up; see ``probe.time_shifts`` of
    ``recipes.probe``."""

    @override
    def validate(self) -> ValidationResult:
        result = NamedFeatureSection.validate(self)
        if self.kind == "store" and self.store is None:
            result.add_error("`store` must be set to the folder of a feature store when `kind` is store.")
        if self.distance not in _DISTANCES:
            result.add_error(f"`distance` must be one of {', '.join(_DISTANCES)}, but is '{self.distance}'.")
        return result


@dataclass(kw_only=True)
class AbxCorpusSection(CorpusSection):
    """The recordings."""

    exclude: list[Path] = field(default_factory=list)
    """Manifests whose recordings are left out, such as those that a model was trained on."""

    max_failures: int = 0
    """Always 0: sources are compared on the same recordings, so one without usable audio ends the run."""

    @override
    def validate(self) -> ValidationResult:
        result = CorpusSection.validate(self)
        if self.max_failures != 0:
            result.add_error(f"`max_failures` must be 0, for sources to be compared, but is {self.max_failures}.")
        return result


@dataclass(kw_only=True)
class AbxSection(Validatable):
    """What is compared: A and X are the same phone, B is another one; an error is an X that is nearer to B."""

    unit: str = "triphone"
    """``triphone``: a phone with its two neighbours. ``phoneme``: the phone alone."""

    context: str = "within"
    """``within``: A, B and X have the same neighbours. ``any``: any neighbours; for phonemes only."""

    ignored_phones: list[str] = field(default_factory=lambda: ["+NSN+", "+SPN+"])
    """Labels of the alignment that are neither phones nor silence (``SIL``); their time counts for nothing."""

    max_group_size: int = 10
    """Pieces of speech that are drawn for each of A, B and X of a comparison."""

    max_x_across: int = 5
    """Other speakers that are drawn for X in comparisons across speakers."""

    environment: Path = Path(".venv-abx")
    """What ``make abx-env`` makes."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name, choices in {"unit": ("triphone", "phoneme"), "context": ("within", "any")}.items():
            if (value := getattr(self, name)) not in choices:
                result.add_error(f"`{name}` must be one of {', '.join(choices)}, but is '{value}'.")
        if self.unit == "triphone" and self.context == "any":
            result.add_error("`context` must be within when `unit` is triphone, but is any.")
        for name in ("max_group_size", "max_x_across"):
            if (value := getattr(self, name)) < 2:
                result.add_error(f"`{name}` must be at least 2, but is {value}.")
        return result


@dataclass(kw_only=True)
class AbxConfig(Validatable):
    """Configuration of ``recipes.abx``."""

    features: list[AbxSourceSection] = field(default_factory=list)
    """What is compared."""

    corpus: AbxCorpusSection = field(default_factory=AbxCorpusSection)

    alignment: Path | None = None
    """Phones of the recordings; by default ``NAME.alignment.tsv`` beside the manifest ``NAME.tsv``."""

    abx: AbxSection = field(default_factory=AbxSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if not self.features:
            result.add_error("`features` must name at least one source, such as [{name: spidr, checkpoint: RUN}].")
        if len(set(names := [section.name for section in self.features])) < len(names):
            result.add_error(f"`features` must have different names, but has {', '.join(names)}.")
        return result

    @property
    def alignment_path(self) -> Path:
        """The alignment of a validated configuration."""
        return self.alignment or self.corpus.manifest_path.with_suffix(".alignment.tsv")

"""Results of probes, one file per task and source, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, final

from recipes.probe.tasks import ProbeTask
from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import Interval, paired_bootstrap_interval


@final
@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """A probe on one layer; with folds, means over the folds for validation, pooled predictions for the test."""

    layer: int
    """Counted from 1; 0 is the learned sum of all layers."""

    valid_accuracy: float

    accuracy: float

    low: float

    high: float

    l2: list[float]
    """Chosen in each split."""

    time_shift: list[float]
    """Chosen in each split, in seconds."""


@final
@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The accuracy of one source of features on one task, in [0, 1], with its 95 % interval."""

    identity: str
    """Of items, features and settings: a result of another identity is out of date."""

    task: str

    source: str

    kind: str

    mode: str

    layer: int
    """Chosen on validation (most often, with folds); 0 for the learned sum."""

    accuracy: float

    low: float

    high: float

    majority: float
    """Accuracy of always naming the most frequent training class."""

    num_classes: int

    num_fitted: int
    """Training and validation items (of the first fold)."""

    num_test: int

    num_files: int

    extraction_seconds: float

    fit_seconds: float

    layer_weights: list[float]
    """Of the learned sum; empty otherwise."""

    layers: list[LayerResult]

    correct: list[int]
    """1 for each test item that was right, else 0."""


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of ``source`` minus that of ``reference`` on the same test items, with its paired 95 % interval."""

    task: str

    source: str

    reference: str

    difference: float

    low: float

    high: float


@final
class ResultStore:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, task: str, source: str, identity: str) -> ProbeResult | None:
        """Return a result unless it is missing, damaged, or of another identity."""
        try:
            record: dict[str, Any] = json.loads(self._path(task, source).read_text(encoding="utf-8"))

            layers = [LayerResult(**layer) for layer in record.pop("layers")]

            result = ProbeResult(**record, layers=layers)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

        return result if result.identity == identity else None

    def save(self, result: ProbeResult) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

        with atomic_file(self._path(result.task, result.source)) as path:
            path.write_text(json.dumps(asdict(result)), encoding="utf-8")

    def _path(self, task: str, source: str) -> Path:
        return self._folder / f"{task}.{source}.json"


def compare(task: ProbeTask, results: Sequence[ProbeResult], *, num_resamples: int, seed: int) -> list[Difference]:
    """Return the differences of all pairs of sources on a task, the source named first in the configuration first."""
    clusters = task.clip[task.test].numpy()

    differences = []

    for result, reference in combinations([result for result in results if result.task == task.name], 2):
        interval: Interval = paired_bootstrap_interval(
            result.correct, reference.correct, clusters, seed=seed, num_resamples=num_resamples
        )

        differences.append(
            Difference(
                task=task.name,
                source=result.source,
                reference=reference.source,
                difference=interval.value,
                low=interval.low,
                high=interval.high,
            )
        )

    return differences

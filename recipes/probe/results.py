"""Results of probes, one file per task and source, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from recipes.probe.tasks import LayerResult
from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import (
    AveragePrecisionStatistic,
    EqualErrorStatistic,
    RatioStatistic,
    Statistic,
    paired_statistic_interval,
)

_STATISTICS: Final = (RatioStatistic, EqualErrorStatistic, AveragePrecisionStatistic)


@final
@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What one source of features reaches on one task, with its 95 % interval."""

    identity: str
    """Of items, features and settings: a result of another identity is out of date."""

    task: str

    source: str

    kind: str
    """Of the source."""

    task_kind: str

    metric: str
    """What is measured; in reports, the value stands under this name."""

    is_error: bool
    """Whether less is better."""

    mode: str

    layer: int
    """Chosen on validation (most often, with folds); 0 for the learned sum."""

    value: float

    low: float

    high: float

    majority: float
    """The value without features; for an accuracy, that of always naming the most frequent training class."""

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

    measures: dict[str, float]
    """Further measures."""

    statistic: Statistic
    """From which value and interval are."""


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """The value of ``source`` minus that of ``reference`` on the same test items, with its paired 95 % interval."""

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

            result = ProbeResult(**record | {"statistic": _load_statistic(record["statistic"])}, layers=layers)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

        return result if result.identity == identity else None

    def save(self, result: ProbeResult) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

        with atomic_file(self._path(result.task, result.source)) as path:
            record = asdict(result) | {"statistic": _dump_statistic(result.statistic)}

            path.write_text(json.dumps(record), encoding="utf-8")

    def _path(self, task: str, source: str) -> Path:
        return self._folder / f"{task}.{source}.json"


def _dump_statistic(statistic: Statistic) -> dict[str, Any]:
    assert isinstance(statistic, _STATISTICS)

    arrays = {field.name: getattr(statistic, field.name).tolist() for field in fields(statistic)}

    return {"class": type(statistic).__name__, **arrays}


def _load_statistic(record: dict[str, Any]) -> Statistic:
    (kind,) = (statistic for statistic in _STATISTICS if statistic.__name__ == record["class"])

    return kind(**{name: np.array(values) for name, values in record.items() if name != "class"})


def compare(task: str, results: Sequence[ProbeResult], *, num_resamples: int, seed: int) -> list[Difference]:
    """Return the differences of all pairs of sources on a task, the source named first in the configuration first."""
    differences = []

    for result, reference in combinations([result for result in results if result.task == task], 2):
        interval = paired_statistic_interval(
            result.statistic, reference.statistic, seed=seed, num_resamples=num_resamples
        )

        differences.append(
            Difference(
                task=task,
                source=result.source,
                reference=reference.source,
                difference=interval.value,
                low=interval.low,
                high=interval.high,
            )
        )

    return differences

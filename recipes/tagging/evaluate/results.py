"""What an evaluation writes. Letters: N recordings, C labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import (
    AveragePrecisionStatistic,
    Interval,
    statistic_interval,
    weighted_average_precisions,
)

PREDICTIONS_FILE: Final = "predictions.tsv"
CLASSES_FILE: Final = "classes.tsv"
SCORES_FILE: Final = "scores.json"


@final
@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What was heard, and what a model hears."""

    ids: Sequence[str]
    """N."""

    labels: Sequence[str]
    """C, the model's."""

    targets: NDArray[np.bool_]
    """(N, C)."""

    probabilities: NDArray[np.float64]
    """(N, C)."""

    def score(self, *, seed: int, num_resamples: int) -> Interval:
        """Return the mean average precision in [0, 1]; labels that no recording has are left out."""
        statistic = AveragePrecisionStatistic(self.probabilities, self.targets)
        return statistic_interval(statistic, seed=seed, num_resamples=num_resamples)

    def precisions(self) -> NDArray[np.float64]:
        """Return the average precision of each label in [0, 1], (C,); NaN for one that no recording has."""
        precisions = weighted_average_precisions(self.probabilities, self.targets, np.ones((1, len(self.ids))))
        return np.asarray(precisions[0])


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a line for each recording below a header: id, labels, and the probability of each label of the model."""
    lines = ["\t".join(["id", "labels", *predictions.labels])]
    for id_, targets, row in zip(predictions.ids, predictions.targets, predictions.probabilities, strict=True):
        own = "|".join(label for label, is_own in zip(predictions.labels, targets, strict=True) if is_own)
        lines.append("\t".join([id_, own, *(f"{value:.6f}" for value in row)]))
    _write(path, lines)


def write_classes(path: Path, predictions: Predictions) -> None:
    """Write each label, how many recordings have it, and its average precision in percent, empty if none has it."""
    lines = ["label\tnum_recordings\taverage_precision"]
    counts = predictions.targets.sum(axis=0)
    for label, count, precision in zip(predictions.labels, counts, predictions.precisions(), strict=True):
        lines.append(f"{label}\t{count}\t{'' if np.isnan(precision) else f'{100 * precision:.2f}'}")
    _write(path, lines)


def write_scores(path: Path, score: Interval, predictions: Predictions) -> None:
    """Write the mean average precision and its interval in percent."""
    record = {
        "num_recordings": len(predictions.ids),
        "num_labels": int(predictions.targets.any(axis=0).sum()),
        "mean_average_precision": 100 * score.value,
        "mean_average_precision_interval": [100 * score.low, 100 * score.high],
    }
    _write(path, [json.dumps(record, indent=1)])


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

"""What an evaluation writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, final

from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import ErrorCounts, Interval, ratio_bootstrap_interval

TRANSCRIPTS_FILE: Final = "transcripts.tsv"
SCORES_FILE: Final = "scores.json"


@final
@dataclass(frozen=True)
class Transcript:
    """What was said, and what was understood."""

    id: str

    reference: str

    hypothesis: str

    errors: ErrorCounts


@final
@dataclass(frozen=True)
class Scores:
    """Error rates in [0, 1], or above if more was understood than said."""

    wer: Interval

    cer: Interval


def score(transcripts: Sequence[Transcript], *, seed: int, num_resamples: int) -> Scores:
    """Return error rates over all transcripts, at least two; recordings are resampled."""

    def rate(numerator: str, denominator: str) -> Interval:
        counts = [(getattr(t.errors, numerator), getattr(t.errors, denominator)) for t in transcripts]
        errors, lengths = zip(*counts, strict=True)
        return ratio_bootstrap_interval(errors, lengths, seed=seed, num_resamples=num_resamples)

    return Scores(rate("word_errors", "num_words"), rate("character_errors", "num_characters"))


def write_transcripts(path: Path, transcripts: Sequence[Transcript]) -> None:
    """Write a line for each recording below a header."""
    columns = ["id", "reference", "hypothesis", *(field.name for field in fields(ErrorCounts))]
    lines = ["\t".join(columns)]
    lines += ["\t".join(map(str, (t.id, t.reference, t.hypothesis, *astuple(t.errors)))) for t in transcripts]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_scores(path: Path, scores: Scores, num_recordings: int) -> None:
    """Write error rates and their intervals in percent."""
    record: dict[str, object] = {"num_recordings": num_recordings}
    for name, interval in (("wer", scores.wer), ("cer", scores.cer)):
        record[name] = 100 * interval.value
        record[f"{name}_interval"] = [100 * interval.low, 100 * interval.high]
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

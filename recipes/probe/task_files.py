"""Task files of probes: labelled moments or segments of audio files.

A task file is tab-separated with the columns ``id, utterance, path, num_samples, sample_rate, label, split, start,
end``, and perhaps ``kind`` (the same in all rows), ``text`` and ``fold`` (which stands above ``split`` where it is
set). ``NAME.alignment.tsv`` beside ``NAME.tsv`` tells what is heard when (columns ``id, start, end, phone, word``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from spear_plugin.data.alignments import AlignmentFileError, Segment, read_alignment
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import ProbeError

_COLUMNS: Final = ("id", "utterance", "path", "num_samples", "sample_rate", "label", "split", "start", "end")


@final
@dataclass(frozen=True, kw_only=True)
class Clip:
    """An audio file of a task."""

    id: str

    path: Path

    duration: Seconds


@final
@dataclass(frozen=True, kw_only=True)
class Item:
    """A moment, if it ends when it starts, or a segment of a file."""

    id: str

    clip: Clip

    start: Seconds

    end: Seconds

    labels: tuple[str, ...]
    """Of a row of the file, its ``label`` alone."""

    text: str

    part: str

    fold: str


@final
@dataclass(frozen=True)
class TaskFile:
    """What a task file says."""

    path: Path

    kind: str | None
    """The column ``kind``, if there is one."""

    items: Sequence[Item]
    """One for each row."""

    alignment: Mapping[str, Sequence[Segment]] | None
    """By the ids of items, if there is one."""


def read_task_file(path: Path) -> TaskFile:
    """Read a task file and its alignment.

    :raises ProbeError: If a file is missing or malformed.
    """
    rows = [(number, row) for number, row in _read_table(path)]
    kinds = sorted({row.get("kind") or "" for _, row in rows})
    if len(kinds) > 1:
        raise ProbeError(f"{path}: `kind` must be the same in all rows, but is {' and '.join(map(repr, kinds[:3]))}.")

    return TaskFile(
        path=path,
        kind=(kinds[0] or None) if kinds else None,
        items=[_read_item(path, number, row) for number, row in rows],
        alignment=_read_alignment(path),
    )


def _read_alignment(path: Path) -> Mapping[str, Sequence[Segment]] | None:
    alignment_path = path.with_suffix(".alignment.tsv")
    try:
        return read_alignment(alignment_path) if alignment_path.exists() else None
    except AlignmentFileError as ex:
        raise ProbeError(str(ex)) from None


def _read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its fields."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)

            if missing := sorted(set(_COLUMNS) - set(reader.fieldnames or ())):
                raise ProbeError(
                    f"{path}: a task file must have the column(s) {', '.join(missing)}. Make the file anew."
                )

            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise ProbeError(f"{path}, line {number}: must have as many fields as the header has.")

                yield number, row
    except OSError as ex:
        raise ProbeError(f"{path}: the task file cannot be read: {ex.strerror}. Make it with `recipes.corpus`.") from ex


def _read_item(path: Path, number: int, row: dict[str, str]) -> Item:
    try:
        duration = int(row["num_samples"]) / int(row["sample_rate"])
        start, end = float(row["start"]), float(row["end"])
    except (ValueError, ZeroDivisionError):
        raise ProbeError(
            f"{path}, line {number}: num_samples, sample_rate, start and end must be numbers. Make the file anew."
        ) from None

    return Item(
        id=row["id"],
        clip=Clip(id=row["utterance"], path=path.parent / row["path"], duration=duration),
        start=start,
        end=end,
        labels=(row["label"],),
        text=row.get("text") or "",
        part=row["split"],
        fold=row.get("fold") or "",
    )

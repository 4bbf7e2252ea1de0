"""One line of a probe task, and the file of all of them; `recipes.corpus.probe_tasks` describes its columns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, final

from recipes.corpus.splits import Split, probe_split
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import Domain, ManifestRow, Seconds


@final
@dataclass(frozen=True, kw_only=True)
class Example:
    """One line of a task."""

    id: str
    utterance: str
    path: Path
    num_samples: int
    sample_rate: int
    domain: Domain
    label: str
    split: Split
    fold: int | None = None
    start: Seconds
    end: Seconds
    text: str
    speaker: str
    language: str
    kind: str = "clips"

    @classmethod
    def of_row(cls, row: ManifestRow, label: str, split: Split | None = None) -> Self:
        """Return the example that is a whole file."""
        return cls(
            id=row.id,
            utterance=row.id,
            path=row.path,
            num_samples=row.num_samples,
            sample_rate=row.sample_rate,
            domain=row.domain,
            label=label,
            split=split or probe_split(row),
            start=0.0,
            end=row.duration,
            text=row.text,
            speaker=row.speaker,
            language=row.language,
        )


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a task atomically, with the columns of :class:`Example` in their order."""
    columns = [field.name for field in fields(Example)]

    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(columns) + "\n")

        for example in examples:
            stream.write("\t".join(_format(path, getattr(example, column)) for column in columns) + "\n")


def _format(path: Path, value: object) -> str:
    match value:
        case None:
            return ""
        case Path():
            return os.path.relpath(value, path.parent)
        case float():
            return f"{value:.3f}"
        case _:
            return str(value)

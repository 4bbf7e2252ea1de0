"""Forced alignments: where each phone of a recording lies.

A tab-separated file, UTF-8, unquoted, with the columns id, start, end, phone and word: all segments of a recording one
after the other, in time order, silence included; seconds with a resolution of 10 ms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import Seconds

SILENCE_PHONE: Final = "SIL"

_COLUMNS: Final = ("id", "start", "end", "phone", "word")


class AlignmentFileError(ValueError):
    """Raised when an alignment cannot be read; the message names file and line."""


@final
@dataclass(frozen=True)
class Segment:
    """A phone, or a silence, in a recording."""

    start: Seconds
    end: Seconds
    phone: str
    word: str


def write_alignment(path: Path, alignment: Mapping[str, Iterable[Segment]]) -> None:
    """Write the segments of each id, atomically."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(_COLUMNS) + "\n")

        for id_, segments in alignment.items():
            for segment in segments:
                stream.write(f"{id_}\t{segment.start:.2f}\t{segment.end:.2f}\t{segment.phone}\t{segment.word}\n")


def read_alignment(path: Path) -> dict[str, list[Segment]]:
    """Return the segments by id, as :func:`write_alignment` was given them.

    :raises AlignmentFileError: If the file is missing, or not such a table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as ex:
        raise AlignmentFileError(
            f"{path}: the alignment cannot be read ({ex}). Make it with `recipes.corpus.align`."
        ) from None

    if not lines or tuple(lines[0].split("\t")) != _COLUMNS:
        raise AlignmentFileError(f"{path}: the header must be {' '.join(_COLUMNS)}. Make the alignment anew.")

    alignment = defaultdict(list)

    for number, line in enumerate(lines[1:], start=2):
        id_, segment = _parse_line(path, number, line)

        alignment[id_].append(segment)

    return dict(alignment)


def _parse_line(path: Path, number: int, line: str) -> tuple[str, Segment]:
    try:
        id_, start, end, phone, word = line.split("\t")

        return id_, Segment(float(start), float(end), phone, word)
    except ValueError:
        raise AlignmentFileError(
            f"{path}, line {number}: must have five fields, the second and third of them seconds. Make the alignment "
            "anew."
        ) from None

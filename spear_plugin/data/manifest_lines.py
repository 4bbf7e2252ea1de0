"""The lines of a manifest, tab-separated text, and the rows that they mean."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeAlias, final

Seconds: TypeAlias = float

Domain: TypeAlias = Literal["speech", "audio"]

DOMAINS: Final[tuple[Domain, ...]] = ("speech", "audio")

REQUIRED_COLUMNS: Final = ("id", "path", "num_samples", "sample_rate", "domain")
OPTIONAL_COLUMNS: Final = ("text", "label", "speaker", "language")

LABEL_SEPARATOR: Final = "|"
"""Stands in no name of a class of AudioSet, unlike commas and semicolons."""


class ManifestError(ValueError):
    """Raised when a manifest cannot be read or written; the message names file, line and column."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One audio file of a corpus."""

    id: str
    """Key of the example, unique in its manifest."""

    path: Path
    """Absolute after reading."""

    num_samples: int
    """Samples per channel at ``sample_rate``, counted by decoding (headers may lie)."""

    sample_rate: int
    """In Hz."""

    domain: Domain
    """Decides which target streams the example is trained on."""

    text: str = ""
    """Transcript."""

    label: str = ""
    """Class of an audio event, or the prompt's name; several classes are separated by ``|``."""

    speaker: str = ""

    language: str = ""

    @property
    def duration(self) -> Seconds:
        return self.num_samples / self.sample_rate

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in ``label``, each once."""
        names = (name.strip() for name in self.label.split(LABEL_SEPARATOR))
        return tuple(dict.fromkeys(name for name in names if name))


COLUMNS: Final = tuple(field.name for field in fields(ManifestRow))

MAX_DIGITS: Final = 18
"""Of a number; so many fit into 64 bits."""


def parse_header(path: Path, line: str) -> list[str]:
    """Return the names of the columns.

    :raises ManifestError: If one is missing, unknown or there twice.
    """
    columns = _split(line)

    for name in REQUIRED_COLUMNS:
        if name not in columns:
            fail(path, 1, name, f"the header must name the column; it names {columns}")

    for name in columns:
        if name not in COLUMNS:
            fail(path, 1, name, f"the column is unknown; known are {', '.join(COLUMNS)}")

        if columns.count(name) > 1:
            fail(path, 1, name, "the header names the column twice")

    return columns


def parse_line(path: Path, folder: Path, line_number: int, columns: list[str], line: str) -> ManifestRow:
    """Return the row of a line; a relative path begins at ``folder``.

    :raises ManifestError: If the line is invalid.
    """
    values = _split(line)

    if len(values) != len(columns):
        raise ManifestError(
            f"{path}, line {line_number}: must have {len(columns)} fields separated by tabs as the header has, but has "
            f"{len(values)}. Remove tabs from the texts."
        )

    record = dict(zip(columns, values, strict=True))

    for name in ("id", "path"):
        if not record[name]:
            fail(path, line_number, name, "must not be empty")

    if (domain := record["domain"]) not in DOMAINS:
        fail(path, line_number, "domain", f"must be one of {', '.join(DOMAINS)}, but is '{domain}'")

    return ManifestRow(
        id=record["id"],
        path=Path(os.path.normpath(os.path.join(folder, record["path"]))),  # noqa: PTH118 (half the time of pathlib)
        num_samples=_parse_count(path, line_number, "num_samples", record["num_samples"]),
        sample_rate=_parse_count(path, line_number, "sample_rate", record["sample_rate"]),
        domain=domain,
        **{name: record.get(name, "") for name in OPTIONAL_COLUMNS},
    )


def _parse_count(path: Path, line_number: int, column: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS) or int(value) == 0:
        fail(path, line_number, column, f"must be a positive integer, but is '{value}'")

    return int(value)


def format_field(path: Path, line_number: int, row: ManifestRow, column: str) -> str:
    """Return what stands in a column of a row's line.

    :raises ManifestError: If it holds a tab or a line break.
    """
    value = getattr(row, column)

    if isinstance(value, Path):
        folder = Path(os.path.abspath(path)).parent  # noqa: PTH100
        value = os.path.relpath(value, folder) if value.is_relative_to(folder.parent) else value

    text = str(value)

    if any(character in text for character in "\t\n\r"):
        fail(path, line_number, column, f"must not hold tabs or line breaks, but is {text!r}")

    return text


def _split(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def fail(path: Path, line_number: int, column: str, problem: str) -> NoReturn:
    """Raise the error of a field."""
    raise ManifestError(f"{path}, line {line_number}, column '{column}': {problem}.")

"""Manifests: one tab-separated line per audio file, below a header line that names the columns.

Tab-separated text without quoting is chosen because every tool reads and writes it, and because a line of it can be
checked on its own. The columns ``id``, ``path``, ``num_samples``, ``sample_rate`` and ``domain`` are required;
``text``, ``label``, ``speaker`` and ``language`` are optional and may be empty. Several labels are separated by ``|``.
A relative path is relative to the manifest's folder, so that a corpus can be moved together with its manifests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeAlias, final

from spear_plugin.data.files import atomic_file

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


_COLUMNS: Final = tuple(field.name for field in fields(ManifestRow))


def read_manifest(path: Path) -> list[ManifestRow]:
    """Return the rows of a manifest in the order of the file.

    :raises ManifestError: If the file is missing or not UTF-8, a required column is missing, a column is unknown, a
        line has too few or too many fields, a number is not a positive integer, a domain is unknown or an id occurs
        twice.
    """
    return list(_iterate_rows(path))


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write a manifest atomically; optional columns that no row uses are left out.

    Paths in the manifest's folder or in its parent are written relative to the folder, others as they are.

    :raises ManifestError: If an id occurs twice, or a field holds a tab or a line break.
    """
    rows = list(rows)
    used = [name for name in OPTIONAL_COLUMNS if any(getattr(row, name) for row in rows)]
    columns = (*REQUIRED_COLUMNS, *used)
    ids: set[str] = set()

    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(columns) + "\n")

        for line_number, row in enumerate(rows, start=2):
            if row.id in ids:
                _fail(path, line_number, "id", f"ids must be unique, but '{row.id}' occurs twice")

            ids.add(row.id)
            stream.write("\t".join(_format_field(path, line_number, row, name) for name in columns) + "\n")


def manifest_digest(path: Path) -> str:
    """Return :func:`rows_digest` of a manifest's rows."""
    return rows_digest(_iterate_rows(path))


def rows_digest(rows: Iterable[ManifestRow]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the ids, lengths and rates, in order.

    It changes whenever codes made for the rows may no longer fit them; texts and paths may change freely.
    """
    digest = hashlib.sha256()

    for row in rows:
        digest.update(f"{row.id}\t{row.num_samples}\t{row.sample_rate}\n".encode())

    return digest.hexdigest()


def _iterate_rows(path: Path) -> Iterator[ManifestRow]:
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 (lexical, as in the writer: links stay as they are)
    ids: set[str] = set()

    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            columns = _parse_header(path, stream.readline())

            for line_number, line in enumerate(stream, start=2):
                row = _parse_line(path, folder, line_number, columns, line)

                if row.id in ids:
                    _fail(path, line_number, "id", f"ids must be unique, but '{row.id}' occurs twice")

                ids.add(row.id)

                yield row
    except OSError as ex:
        raise ManifestError(f"{path}: the manifest cannot be read: {ex.strerror}. Check the path.") from ex
    except UnicodeDecodeError as ex:
        raise ManifestError(f"{path}: a manifest must be UTF-8 text: {ex}. Convert the file.") from ex


def _parse_header(path: Path, line: str) -> list[str]:
    columns = _split(line)

    for name in REQUIRED_COLUMNS:
        if name not in columns:
            _fail(path, 1, name, f"the header must name the column; it names {columns}")

    for name in columns:
        if name not in _COLUMNS:
            _fail(path, 1, name, f"the column is unknown; known are {', '.join(_COLUMNS)}")

        if columns.count(name) > 1:
            _fail(path, 1, name, "the header names the column twice")

    return columns


def _parse_line(path: Path, folder: Path, line_number: int, columns: list[str], line: str) -> ManifestRow:
    values = _split(line)

    if len(values) != len(columns):
        raise ManifestError(
            f"{path}, line {line_number}: must have {len(columns)} fields separated by tabs as the header has, but has "
            f"{len(values)}. Remove tabs from the texts."
        )

    record = dict(zip(columns, values, strict=True))

    for name in ("id", "path"):
        if not record[name]:
            _fail(path, line_number, name, "must not be empty")

    if (domain := record["domain"]) not in DOMAINS:
        _fail(path, line_number, "domain", f"must be one of {', '.join(DOMAINS)}, but is '{domain}'")

    return ManifestRow(
        id=record["id"],
        path=Path(os.path.normpath(folder / record["path"])),
        num_samples=_parse_count(path, line_number, "num_samples", record["num_samples"]),
        sample_rate=_parse_count(path, line_number, "sample_rate", record["sample_rate"]),
        domain=domain,
        **{name: record.get(name, "") for name in OPTIONAL_COLUMNS},
    )


def _parse_count(path: Path, line_number: int, column: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) == 0:
        _fail(path, line_number, column, f"must be a positive integer, but is '{value}'")

    return int(value)


def _format_field(path: Path, line_number: int, row: ManifestRow, column: str) -> str:
    value = getattr(row, column)

    if isinstance(value, Path):
        folder = Path(os.path.abspath(path)).parent  # noqa: PTH100
        value = os.path.relpath(value, folder) if value.is_relative_to(folder.parent) else value

    text = str(value)

    if any(character in text for character in "\t\n\r"):
        _fail(path, line_number, column, f"must not hold tabs or line breaks, but is {text!r}")

    return text


def _split(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _fail(path: Path, line_number: int, column: str, problem: str) -> NoReturn:
    raise ManifestError(f"{path}, line {line_number}, column '{column}': {problem}.")

"""Manifests: one tab-separated line per audio file, below a header line that names the columns.

Tab-separated text without quoting is chosen because every tool reads and writes it, and because a line of it can be
checked on its own. The columns ``id``, ``path``, ``num_samples``, ``sample_rate`` and ``domain`` are required;
``text``, ``label``, ``speaker`` and ``language`` are optional and may be empty. Several labels are separated by ``|``.
A relative path is relative to the manifest's folder, so that a corpus can be moved together with its manifests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest_lines import (
    COLUMNS,
    DOMAINS,
    LABEL_SEPARATOR,
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Domain,
    ManifestError,
    ManifestRow,
    Seconds,
    fail,
    format_field,
)
from spear_plugin.data.manifest_table import ManifestTable

__all__ = [
    "DOMAINS",
    "LABEL_SEPARATOR",
    "OPTIONAL_COLUMNS",
    "REQUIRED_COLUMNS",
    "Domain",
    "ManifestError",
    "ManifestRow",
    "ManifestTable",
    "Seconds",
    "manifest_digest",
    "read_manifest",
    "rows_digest",
    "write_manifest",
]


def read_manifest(path: Path) -> ManifestTable:
    """Return the rows of a manifest in the order of the file.

    :raises ManifestError: If the file is missing or not UTF-8, a required column is missing, a column is unknown, a
        line has too few or too many fields, a number is not a positive integer, a domain is unknown or an id occurs
        twice.
    """
    return ManifestTable(path)


def write_manifest(path: Path, rows: Iterable[ManifestRow]) -> None:
    """Write a manifest atomically; optional columns that no row uses are left out.

    Paths in the manifest's folder or in its parent are written relative to the folder, others as they are. Rows may
    come one by one: 8 bytes of each stay in memory.

    :raises ManifestError: If an id occurs twice, or a field holds a tab or a line break.
    """
    hashes, used = array("q"), set(REQUIRED_COLUMNS)

    # Which columns are used is known at the end.
    with TemporaryFile("w+", encoding="utf-8", newline="\n", dir=path.parent) as draft:
        for line_number, row in enumerate(rows, start=2):
            hashes.append(hash(row.id))
            used.update(name for name in OPTIONAL_COLUMNS if getattr(row, name))
            draft.write("\t".join(format_field(path, line_number, row, name) for name in COLUMNS) + "\n")

        _check_unique(path, draft, np.array(hashes, dtype=np.int64))
        chosen = [index for index, name in enumerate(COLUMNS) if name in used]
        draft.seek(0)

        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write("\t".join(COLUMNS[index] for index in chosen) + "\n")

            for line in draft:
                values = line.removesuffix("\n").split("\t")
                stream.write("\t".join(values[index] for index in chosen) + "\n")


def _check_unique(path: Path, draft: TextIO, hashes: NDArray[np.int64]) -> None:
    hashes.sort()

    if not (repeated := set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())):
        return

    ids = set()
    draft.seek(0)

    for line_number, line in enumerate(draft, start=2):
        if hash(id_ := line.split("\t", 1)[0]) in repeated:
            if id_ in ids:
                fail(path, line_number, "id", f"ids must be unique, but '{id_}' occurs twice")

            ids.add(id_)


def manifest_digest(path: Path) -> str:
    """Return :func:`rows_digest` of a manifest's rows."""
    return rows_digest(read_manifest(path))


def rows_digest(rows: Iterable[ManifestRow]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the ids, lengths and rates, in order.

    It changes whenever codes made for the rows may no longer fit them; texts and paths may change freely.
    """
    if isinstance(rows, ManifestTable):
        return rows.digest()

    digest = hashlib.sha256()

    for row in rows:
        digest.update(f"{row.id}\t{row.num_samples}\t{row.sample_rate}\n".encode())

    return digest.hexdigest()

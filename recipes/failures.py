"""Lists of files that a recipe left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from recipes.common import write_failures


@final
class FailureLists:
    """Files left out of a store: a list for each part, so that a continued run knows those of the finished parts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "failed.tsv"
        self._parts = folder / "failed"

    def write(self, part: str, failures: Sequence[tuple[str, str]]) -> None:
        """Replace the list, (id, problem), of a part; must precede the part itself."""
        if failures:
            self._parts.mkdir(exist_ok=True)
        write_failures(self._parts / f"{part}.tsv", failures)

    def read(self, part: str = "*") -> list[tuple[str, str]]:
        """Return the list, (id, problem), of a part, or of all parts by all processes."""
        lines = [line for path in sorted(self._parts.glob(f"{part}.tsv")) for line in path.read_text().splitlines()[1:]]
        return [(id_, problem) for id_, problem in (line.split("\t") for line in lines)]

    def count(self) -> int:
        """Return the number of files left out so far, by all processes."""
        return len(self.read())

    def merge(self) -> int:
        """Write the list of all parts, or none if no file was left out; return its length."""
        failures = self.read()
        write_failures(self._path, failures)
        return len(failures)


def shard_name(index: int) -> str:
    """Return the name of a shard's part."""
    return f"shard-{index:05d}"

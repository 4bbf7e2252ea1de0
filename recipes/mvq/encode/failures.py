from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

from recipes.common import write_failures


@final
class FailureLists:
    """Files left out of a store: a list for each shard, so that a continued run knows those of the finished shards."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "failed.tsv"
        self._parts = folder / "failed"

    def write(self, shard: int, failures: Sequence[tuple[str, str]]) -> None:
        """Replace the list, (id, problem), of a shard; must precede the shard itself."""
        if failures:
            self._parts.mkdir(exist_ok=True)
        write_failures(self._parts / f"shard-{shard:05d}.tsv", failures)

    def count(self) -> int:
        """Return the number of files left out so far, by all processes."""
        return sum(len(part.read_text().splitlines()) - 1 for part in self._parts.glob("shard-*.tsv"))

    def merge(self) -> int:
        """Write the list of all shards, or none if no file was left out; return its length."""
        lines = [line for part in sorted(self._parts.glob("*.tsv")) for line in part.read_text().splitlines()[1:]]
        write_failures(self._path, [(id_, problem) for id_, problem in (line.split("\t") for line in lines)])

        return len(lines)

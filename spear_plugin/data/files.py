from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an exception.

    A reader, or a process killed at any moment, sees either the old file or the complete new one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")

    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def abbreviate(names: list[str], limit: int = 3, *, total: int | None = None) -> str:
    """Return the first names and the number of the others, for messages of one line.

    :param total: Number of names, where only the first are given.
    """
    shown, total = ", ".join(f"'{name}'" for name in names[:limit]), total or len(names)

    return shown if total <= limit else f"{shown} and {total - limit} more"

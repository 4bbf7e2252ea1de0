"""Files that are whole or not there, and marks of finished commands; `spear_plugin.data.files` would import more."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import final


class LaunchError(RuntimeError):
    """A launch cannot be made as asked for; the message names the option or file and the remedy."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text so that a reader sees either the old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@final
@dataclass(frozen=True, kw_only=True)
class Mark:
    """A file that says that a command is finished."""

    path: Path

    command: str

    def write(self, seconds: float) -> None:
        """Record that the command took so many seconds in its last start."""
        write_atomically(self.path, f"{self.command}\n{seconds:.1f}")

    def read(self) -> float | None:
        """Return the seconds that the command took, or None if it, as it is now, has not been finished."""
        try:
            command, seconds = self.path.read_text(encoding="utf-8").rsplit("\n", 1)
            return float(seconds) if command == self.command else None
        except (OSError, ValueError):
            return None

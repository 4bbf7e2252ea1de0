"""Atomic writes, as in `spear_plugin.data.files`, which submitting does without."""

from __future__ import annotations

import secrets
from pathlib import Path


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

from __future__ import annotations

from pathlib import Path


class AudioError(ValueError):
    """Raised when a file gives no usable audio; the message is one line with path, problem and remedy."""

    def __init__(self, path: Path, problem: str, remedy: str = "Replace or remove the file.") -> None:
        super().__init__(f"{path}: {problem}. {remedy}")

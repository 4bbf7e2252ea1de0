"""Rules by which a tokenizer rewrites text before it looks for pieces."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spear_plugin.data.files import atomic_file

_APOSTROPHES: Final = "\u2018\u2019\u02bc\uff07"

_SILENT: Final = ("C", "P", "S", "Z")
"""General categories of Unicode: controls, punctuation, symbols, separators."""

_BASIC_PLANE: Final = range(1, 0x10000)


def write_spoken_rules(path: Path) -> None:
    """Write the rules as sentencepiece reads them: code points, a tab, and the code points that take their place."""
    with atomic_file(path) as temporary:
        lines = (f"{ord(character):X}\t{_code_points(spoken)}" for character, spoken in _spoken_characters())
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


def _spoken_characters() -> Iterator[tuple[str, str]]:
    for character in map(chr, _BASIC_PLANE):
        category = unicodedata.category(character)
        if category in ("Cn", "Co", "Cs") or character in "' ":
            continue  # no characters, or what stays as it is
        if character in _APOSTROPHES:
            yield character, "'"
        elif category[0] in _SILENT:
            yield character, " "
        elif (lower := character.lower()) != character:
            yield character, lower


def _code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)

"""Probe tasks on who speaks: characters of acted dialogue. Which lines are drawn follows from hashes alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Final

from recipes.corpus.examples import Example
from recipes.corpus.splits import Split, place, probe_split
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow

_CHARACTERS: Final = ("small", "big")

_NO_CHARACTERS: Final = ("", "both")
"""Lines whose speaker is unknown, or more than one."""

_MIN_LINES: Final = 4
_MAX_LINES: Final = 60
"""Of a character."""

_TEST_SHARE: Final = 0.5
"""Of the characters, in verification."""

_MAX_PAIRS: Final = 100
"""Of lines of one character, and of two."""


def speaker_examples(rows: Sequence[ManifestRow]) -> list[Example]:
    """Return the lines of the two leading characters."""
    return [Example.of_row(row, label=row.speaker) for row in rows if row.speaker in _CHARACTERS]


def character_examples(rows: Sequence[ManifestRow]) -> list[Example]:
    """Return lines of each character who has some in every split."""
    characters = _lines_of_characters(rows)
    return [
        replace(Example.of_row(row, label=name), kind="utterances")
        for name, lines in characters.items()
        if len({probe_split(row) for row in lines}) == 3
        for row in lines
    ]


def verification_examples(rows: Sequence[ManifestRow]) -> tuple[list[Example], list[tuple[str, str]]]:
    """Return lines of characters to learn from and of others to test on, and pairs of the latter by their ids.

    The pairs are all of one character, at most a hundred for each, and as many of two.
    """
    characters = _lines_of_characters(rows)
    tested = {
        name: lines for name, lines in characters.items() if name not in _CHARACTERS and place(name) < _TEST_SHARE
    }
    if len(tested) < 2 or len(characters) < len(tested) + 2:
        return [], []

    examples = []
    for name, lines in characters.items():
        if name not in tested and not any(probe_split(row) == "train" for row in lines):
            continue
        for row in lines:
            split: Split = "test" if name in tested else "train" if probe_split(row) == "train" else "valid"
            examples.append(replace(Example.of_row(row, label=name, split=split), kind="verification"))
    return examples, _pair(tested)


def write_trials(path: Path, trials: Sequence[tuple[str, str]]) -> None:
    """Write pairs of ids below a header, atomically."""
    with atomic_file(path) as temporary:
        lines = ["enrolment\ttest", *("\t".join(trial) for trial in trials)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines_of_characters(rows: Sequence[ManifestRow]) -> dict[str, list[ManifestRow]]:
    """Return the lines that are drawn of each character with enough of them."""
    lines = defaultdict(list)
    for row in sorted(rows, key=lambda row: place(row.id)):
        if row.speaker not in _NO_CHARACTERS:
            lines[row.speaker].append(row)
    return {name: lines[name][:_MAX_LINES] for name in sorted(lines) if len(lines[name]) >= _MIN_LINES}


def _pair(tested: Mapping[str, Sequence[ManifestRow]]) -> list[tuple[str, str]]:
    def draw(pairs: Sequence[tuple[str, str]], number: int) -> list[tuple[str, str]]:
        return sorted(pairs, key=lambda pair: place(" ".join(pair)))[:number]

    same = [
        pair for lines in tested.values() for pair in draw(list(combinations([row.id for row in lines], 2)), _MAX_PAIRS)
    ]
    names = {row.id: name for name, lines in tested.items() for row in lines}
    different = [pair for pair in combinations(names, 2) if names[pair[0]] != names[pair[1]]]
    return sorted(same + draw(different, len(same)))

"""Probe tasks on what is said: phones, words and keywords of aligned prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from recipes.corpus.examples import Example
from recipes.corpus.splits import place
from spear_plugin.data.alignments import Segment
from spear_plugin.data.manifest import ManifestRow

_MIN_WORD_COUNT: Final = 10

# Without function words the prompts would leave some forty examples to test on; letters and "a" are left out.
_MIN_WORD_LETTERS: Final = 3

_NUM_KEYWORDS: Final = 10
_MIN_SILENCE: Final = 0.2
"""Seconds."""

UNKNOWN_WORD: Final = "_unknown_"
SILENCE: Final = "_silence_"


def phone_examples(rows: Sequence[ManifestRow], alignment: Mapping[str, Sequence[Segment]]) -> list[Example]:
    """Return the aligned rows; their labels are the alignment."""
    return [replace(Example.of_row(row, label=""), kind="frames") for row in rows if row.id in alignment]


def word_examples(rows: Sequence[ManifestRow], alignment: Mapping[str, Sequence[Segment]]) -> list[Example]:
    """Return the segments of the words that occur often, and in every split."""
    examples = [
        example
        for row in rows
        for example in _words(row, alignment.get(row.id, ()))
        if len(example.label) >= _MIN_WORD_LETTERS
    ]

    counts = Counter(example.label for example in examples)

    splits = {(example.label, example.split) for example in examples}

    return [
        example
        for example in examples
        if counts[example.label] >= _MIN_WORD_COUNT
        and {(example.label, s) for s in ("train", "valid", "test")} <= splits
    ]


def keyword_examples(rows: Sequence[ManifestRow], alignment: Mapping[str, Sequence[Segment]]) -> list[Example]:
    """Return the most frequent words of :func:`word_examples`, and as many other words and silences as of one of them.

    The task is that of SUPERB (arXiv 2105.01051), with words cut from prompts.
    """
    frequent = word_examples(rows, alignment)
    counts = Counter(example.label for example in frequent)
    keywords = {word for word, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_NUM_KEYWORDS]}
    if len(keywords) < 2:
        return []

    spoken = [word for row in rows for word in _words(row, alignment.get(row.id, ()))]
    others = [w for w in spoken if w.label not in keywords and len(w.label) >= _MIN_WORD_LETTERS]
    silences = [silence for row in rows for silence in _silences(row, alignment.get(row.id, ()))]
    share = round(sum(counts[word] for word in keywords) / len(keywords))
    chosen = [
        *(example for example in frequent if example.label in keywords),
        *(replace(word, label=UNKNOWN_WORD) for word in sorted(others, key=lambda w: place(w.id))[:share]),
        *sorted(silences, key=lambda silence: place(silence.id))[:share],
    ]
    trained = {example.label for example in chosen if example.split == "train"}
    return [replace(example, kind="utterances") for example in chosen if example.label in trained]


def _silences(row: ManifestRow, segments: Sequence[Segment]) -> list[Example]:
    whole = Example.of_row(row, label=SILENCE)
    return [
        replace(whole, id=f"{row.id}#silence{number}", start=segment.start, end=segment.end)
        for number, segment in enumerate(segments)
        if not segment.word[0].isalpha() and segment.end - segment.start >= _MIN_SILENCE
    ]


def _words(row: ManifestRow, segments: Sequence[Segment]) -> list[Example]:
    whole = Example.of_row(row, label="")

    # A word said twice in a row counts as one: the alignment names words, it does not number them.
    groups = [list(group) for _, group in groupby(segments, key=lambda segment: segment.word)]

    spoken = [group for group in groups if group[0].word[0].isalpha()]  # silences are `<sil>`, `[NOISE]`

    return [
        replace(whole, id=f"{row.id}#{number}", label=group[0].word, start=group[0].start, end=group[-1].end)
        for number, group in enumerate(spoken)
    ]

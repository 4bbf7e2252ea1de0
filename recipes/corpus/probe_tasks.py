"""Labelled examples for linear probes, made from the packaged corpora; the files are the interface of `recipes.probe`.

``OUT/probe/`` holds one tab-separated file with a header line per task, UTF-8, unquoted, in the order of the ids::

    phones.tsv     one row per aligned English prompt; `label` is empty, the labels lie in phones.alignment.tsv
    words.tsv      one row per spoken word (a segment of a prompt); `label` is the word
    speakers.tsv   one row per acted line of Czech dialogue; `label` is the character, `small` or `big`
    events.tsv     one row per clip of the labelled sound collections; `label` is `COLLECTION/CLASS`, the class being
                   sonic-pi's file prefix, lmms' folder or tuxpaint's topic
    phones.alignment.tsv   columns id, start, end, phone, word: every segment of every row of phones.tsv, in time
                   order, silence included (phone `SIL`, `+NSN+`, ...; word `<sil>`, ...); seconds with 10 ms
                   resolution; phones are the 39 of the CMU dictionary

Columns of a task, all present in every file:

    id           unique in the file; for words, `UTTERANCE#N` with N the word's place in the prompt
    utterance    id of the audio file in the manifests (bootstrap intervals resample utterances, not frames)
    path         audio file, relative to the folder of the TSV
    num_samples, sample_rate, domain    of the whole audio file, as in a manifest
    label        see above
    split        train, valid (choice of the layer and of the regularisation) or test
    fold         0 to 4 in events.tsv (five-fold cross-validation, classes spread evenly); empty elsewhere
    start, end   seconds of the labelled segment; 0 and the duration when it is the whole file
    text, speaker, language             as in a manifest, may be empty

Splits of phones, words and speakers depend on nothing but the normalised text: clips with the same text, and all words
of a prompt, fall into the same split. Clips of their test split are left out of the pre-training manifests. The clips
of events.tsv are, without labels, part of the pre-training audio unless `--hold-out-events` left them out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Final, Self, final

from recipes.corpus.splits import Split, assign_folds, probe_split
from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import Domain, ManifestRow, Seconds

NUM_FOLDS: Final = 5

_MIN_WORD_COUNT: Final = 10
_MIN_CLASS_SIZE: Final = 5

_CHARACTERS: Final = ("small", "big")

EVENT_CORPORA: Final = ("sonic_pi", "lmms", "tuxpaint_effects")

# Single periods of oscillators, and what lmms' authors found no class for.
_NO_EVENTS: Final = ("lmms/waveforms", "lmms/shapes", "lmms/misc")

# Without function words the prompts would leave some forty examples to test on; letters and "a" are left out.
_MIN_WORD_LETTERS: Final = 3


@final
@dataclass(frozen=True, kw_only=True)
class Example:
    """One line of a task; see the module's documentation."""

    id: str
    utterance: str
    path: Path
    num_samples: int
    sample_rate: int
    domain: Domain
    label: str
    split: Split
    fold: int | None = None
    start: Seconds
    end: Seconds
    text: str
    speaker: str
    language: str

    @classmethod
    def of_row(cls, row: ManifestRow, label: str, split: Split | None = None) -> Self:
        """Return the example that is a whole file."""
        return cls(
            id=row.id,
            utterance=row.id,
            path=row.path,
            num_samples=row.num_samples,
            sample_rate=row.sample_rate,
            domain=row.domain,
            label=label,
            split=split or probe_split(row),
            start=0.0,
            end=row.duration,
            text=row.text,
            speaker=row.speaker,
            language=row.language,
        )


def phone_examples(rows: Sequence[ManifestRow], alignment: Mapping[str, Sequence[Segment]]) -> list[Example]:
    """Return the aligned rows; their labels are the alignment."""
    return [Example.of_row(row, label="") for row in rows if row.id in alignment]


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


def _words(row: ManifestRow, segments: Sequence[Segment]) -> list[Example]:
    whole = Example.of_row(row, label="")

    # A word said twice in a row counts as one: the alignment names words, it does not number them.
    groups = [list(group) for _, group in groupby(segments, key=lambda segment: segment.word)]

    spoken = [group for group in groups if group[0].word[0].isalpha()]  # silences are `<sil>`, `[NOISE]`

    return [
        replace(whole, id=f"{row.id}#{number}", label=group[0].word, start=group[0].start, end=group[-1].end)
        for number, group in enumerate(spoken)
    ]


def speaker_examples(rows: Sequence[ManifestRow]) -> list[Example]:
    """Return the lines of the two leading characters."""
    return [Example.of_row(row, label=row.speaker) for row in rows if row.speaker in _CHARACTERS]


def event_examples(corpora: Mapping[str, Sequence[ManifestRow]]) -> list[Example]:
    """Return the classes with clips enough for every fold; folds 3 and 4 are the splits valid and test."""
    rows = [replace(row, label=f"{name}/{row.label}") for name, clips in corpora.items() for row in clips]

    counts = Counter(row.label for row in rows if row.label not in _NO_EVENTS)

    frequent = [row for row in rows if counts[row.label] >= _MIN_CLASS_SIZE]

    folds = assign_folds({row.id: row.label for row in frequent}, NUM_FOLDS)

    by_fold: dict[int, Split] = {NUM_FOLDS - 2: "valid", NUM_FOLDS - 1: "test"}

    return [
        replace(Example.of_row(row, row.label, by_fold.get(folds[row.id], "train")), fold=folds[row.id])
        for row in frequent
    ]


def write_probe_tasks(
    folder: Path, corpora: Mapping[str, Sequence[ManifestRow]], alignment: Mapping[str, Sequence[Segment]]
) -> dict[str, list[Example]]:
    """Write the tasks that ``corpora`` (name to rows) allow, and return their examples by task."""
    english, dialogue = corpora.get("asterisk_en", ()), corpora.get("fillets_cs", ())

    tasks = {
        "phones": phone_examples(english, alignment),
        "words": word_examples(english, alignment),
        "speakers": speaker_examples(dialogue),
        "events": event_examples({name: corpora.get(name, ()) for name in EVENT_CORPORA}),
    }

    folder.mkdir(parents=True, exist_ok=True)

    written = {name: sorted(examples, key=lambda example: example.id) for name, examples in tasks.items() if examples}

    for name in tasks:
        if name in written:
            write_examples(folder / f"{name}.tsv", written[name])
        else:
            (folder / f"{name}.tsv").unlink(missing_ok=True)

    if "phones" in written:
        write_alignment(folder / "phones.alignment.tsv", {row.id: alignment[row.id] for row in written["phones"]})

    return written


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a task atomically, with the columns of :class:`Example` in their order."""
    columns = [field.name for field in fields(Example)]

    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\t".join(columns) + "\n")

        for example in examples:
            stream.write("\t".join(_format(path, getattr(example, column)) for column in columns) + "\n")


def _format(path: Path, value: object) -> str:
    match value:
        case None:
            return ""
        case Path():
            return os.path.relpath(value, path.parent)
        case float():
            return f"{value:.3f}"
        case _:
            return str(value)

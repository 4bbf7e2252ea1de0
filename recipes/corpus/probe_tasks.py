"""Labelled examples for linear probes, made from the packaged corpora; the files are the interface of `recipes.probe`.

``OUT/probe/`` holds one tab-separated file with a header line per task, UTF-8, unquoted, in the order of the ids::

    phones.tsv     one row per aligned English prompt; `label` is empty, the labels lie in phones.alignment.tsv
    words.tsv      one row per spoken word (a segment of a prompt); `label` is the word
    keywords.tsv   spoken words as ten keywords, `_unknown_` for some others, and `_silence_`
    speakers.tsv   one row per acted line of Czech dialogue; `label` is the character, `small` or `big`
    characters.tsv some lines of each Czech character with enough of them in every split; `label` is the character
    verification.tsv  some lines of each Czech character; the characters of the test split are in no other
    verification.trials.tsv  columns enrolment, test: pairs of test lines, half of them by one character
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
    kind         of the probe that the task is for, as in `recipes.probe.kinds`
    split        train, valid (choice of the layer and of the regularisation) or test
    fold         0 to 4 in events.tsv (five-fold cross-validation, classes spread evenly); empty elsewhere
    start, end   seconds of the labelled segment; 0 and the duration when it is the whole file
    text, speaker, language             as in a manifest, may be empty

Splits of phones, words and speakers depend on nothing but the normalised text: clips with the same text, and all words
of a prompt, fall into the same split. Clips of their test split are left out of the pre-training manifests. The clips
of events.tsv are, without labels, part of the pre-training audio unless `--hold-out-events` left them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from recipes.corpus.examples import Example, write_examples
from recipes.corpus.speaker_tasks import (
    character_examples,
    speaker_examples,
    verification_examples,
    write_trials,
)
from recipes.corpus.splits import Split, assign_folds
from recipes.corpus.spoken_tasks import keyword_examples, phone_examples, word_examples
from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.manifest import ManifestRow

NUM_FOLDS: Final = 5

_MIN_CLASS_SIZE: Final = 5

EVENT_CORPORA: Final = ("sonic_pi", "lmms", "tuxpaint_effects")

# Single periods of oscillators, and what lmms' authors found no class for.
_NO_EVENTS: Final = ("lmms/waveforms", "lmms/shapes", "lmms/misc")


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

    verification, trials = verification_examples(dialogue)

    tasks = {
        "phones": phone_examples(english, alignment),
        "words": word_examples(english, alignment),
        "keywords": keyword_examples(english, alignment),
        "speakers": speaker_examples(dialogue),
        "characters": character_examples(dialogue),
        "verification": verification,
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

    if trials:
        write_trials(folder / "verification.trials.tsv", trials)
    else:
        (folder / "verification.trials.tsv").unlink(missing_ok=True)

    return written

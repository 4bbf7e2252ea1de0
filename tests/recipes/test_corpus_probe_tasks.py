from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from recipes.corpus.packaged import write_pretraining_manifests
from recipes.corpus.probe_tasks import event_examples, write_probe_tasks
from recipes.corpus.speaker_tasks import character_examples, speaker_examples, verification_examples
from recipes.corpus.splits import assign_folds, normalize_text, place, pretrain_split, probe_split, split_key
from recipes.corpus.spoken_tasks import SILENCE, UNKNOWN_WORD, keyword_examples, phone_examples, word_examples
from spear_plugin.data.alignments import Segment, read_alignment
from spear_plugin.data.manifest import ManifestRow, read_manifest

FOLDER = Path("/corpus")


def make_row(id_: str, text: str = "", label: str = "", speaker: str = "") -> ManifestRow:
    return ManifestRow(
        id=id_,
        path=FOLDER / f"{id_}.wav",
        num_samples=16_000,
        sample_rate=16_000,
        domain="speech" if text else "audio",
        text=text,
        label=label,
        speaker=speaker,
    )


def make_prompts(num_prompts: int = 200) -> list[ManifestRow]:
    return [make_row(f"en/{number}", text=f"press {number} press") for number in range(num_prompts)]


def align(rows: Iterable[ManifestRow]) -> dict[str, list[Segment]]:
    """Give each word a phone of a tenth of a second, after a silence."""
    return {
        row.id: [Segment(0.0, 0.1, "SIL", "<sil>")]
        + [Segment(n / 10, (n + 1) / 10, "AH", word) for n, word in enumerate(row.text.split(), start=1)]
        for row in rows
    }


def test_places_are_uniform_and_fixed_for_ever() -> None:
    places = [place(f"key {number}") for number in range(4000)]

    assert all(abs(sum(p < share for p in places) / 4000 - share) < 0.03 for share in (0.1, 0.5, 0.9))

    assert place("") == 0xE3B0C442_98FC1C14 / 2**64  # FIPS 180: SHA-256 of nothing begins so


def test_the_same_sentence_always_falls_into_the_same_split() -> None:
    rows = [make_row("a", "Please hold."), make_row("b", "please  HOLD"), make_row("c/d/e", "(please) - hold")]

    assert {split_key(row) for row in rows} == {"please hold"}

    assert len({probe_split(row) for row in rows}) == 1

    assert normalize_text("Don't l'été_2!") == "don't l'été 2"


def test_pieces_and_copies_of_a_recording_share_their_split() -> None:
    assert split_key(make_row("music/song#3")) == split_key(make_row("other/song")) == "song"


def test_pretraining_and_probe_splits_do_not_leak() -> None:
    for row in make_prompts(500):
        probe, pretraining = probe_split(row), pretrain_split(row, hold_out_test=True)

        assert (probe == "test") == (pretraining == "test")

        assert not (probe == "train" and pretraining == "valid")

        if probe == "test":
            assert pretrain_split(row, hold_out_test=False) == "train"


def test_folds_spread_every_class_evenly() -> None:
    labels = {f"{label}{number}": label for label, size in (("a", 5), ("b", 13), ("c", 26)) for number in range(size)}

    folds = assign_folds(labels, 5)

    counts = Counter((labels[key], fold) for key, fold in folds.items())

    for label, size in (("a", 5), ("b", 13), ("c", 26)):
        assert {counts[label, fold] for fold in range(5)} <= {size // 5, -(-size // 5)}

    assert max(Counter(folds.values()).values()) - min(Counter(folds.values()).values()) <= 1


def test_phones_are_the_aligned_rows() -> None:
    rows = make_prompts(3)

    assert [example.id for example in phone_examples(rows, align(rows[:2]))] == ["en/0", "en/1"]


def test_words_are_frequent_in_every_split_and_keep_their_times() -> None:
    rows = make_prompts()

    examples = word_examples(rows, align(rows))

    assert {example.label for example in examples} == {"press"}  # each number is said once

    first = next(example for example in examples if example.utterance == "en/7")

    assert (first.id, first.start, first.end) == ("en/7#0", 0.1, 0.2)

    assert all(example.split == probe_split(row) for row in rows for example in examples if example.utterance == row.id)


def test_speakers_are_the_two_leading_characters() -> None:
    rows = [
        make_row(str(number), text=f"t{number}", speaker=name)
        for number, name in enumerate(("small", "big", "crab", ""))
    ]

    assert [example.label for example in speaker_examples(rows)] == ["small", "big"]


def test_keywords_are_the_most_frequent_words_with_others_and_silences() -> None:
    words = [f"word{letter}" for letter in "abcdefghijklmn"]

    texts = [" ".join(words[: 4 + number % 11]) + f" {number}" for number in range(200)]

    rows = [make_row(f"en/{number}", text=text) for number, text in enumerate(texts)]

    examples = keyword_examples(rows, {id_: [*segments, Segment(9.0, 9.3, "SIL", "<sil>")]
                                       for id_, segments in align(rows).items()})  # fmt: skip

    counts = Counter(example.label for example in examples)

    assert set(counts) == {*words[:10], UNKNOWN_WORD, SILENCE}

    mean = round(sum(counts[word] for word in words[:10]) / 10)

    assert (counts[UNKNOWN_WORD], counts[SILENCE]) == (min(mean, sum(text.count("wordk") + text.count("wordl") +
            text.count("wordm") + text.count("wordn") for text in texts)), mean)  # fmt: skip

    assert {(e.start, e.end) for e in examples if e.label == SILENCE} == {(9.0, 9.3)}  # the other one is too short

    assert {example.kind for example in examples} == {"utterances"}

    assert len({example.id for example in examples}) == len(examples)


def make_lines() -> list[ManifestRow]:
    sizes = {"small": 90, "big": 30, "crab": 30, "snail": 20, "statue": 25, "rare": 3, "both": 20, "": 20, "robot": 20}

    return [
        make_row(f"{name}/{n}", text=f"{name} {n}", speaker=name) for name, size in sizes.items() for n in range(size)
    ]


def test_characters_have_some_lines_in_every_split() -> None:
    examples = character_examples(make_lines())

    counts = Counter(example.label for example in examples)

    assert set(counts) <= {"small", "big", "crab", "snail", "statue", "robot"}

    assert counts["small"] == 60

    assert all(len({e.split for e in examples if e.label == name}) == 3 for name in counts)


def test_speakers_are_verified_that_no_other_split_has() -> None:
    examples, trials = verification_examples(make_lines())

    speakers = {example.id: example.label for example in examples}

    tested = {example.label for example in examples if example.split == "test"}

    assert len(tested) >= 2

    assert not tested & ({"small", "big", "rare", "both", ""} | {e.label for e in examples if e.split != "test"})

    assert {e.label for e in examples if e.split == "valid"} <= {e.label for e in examples if e.split == "train"}

    same = [speakers[first] == speakers[second] for first, second in trials]

    assert (sum(same), len(same)) == (100 * len(tested), 200 * len(tested))

    assert {speakers[id_] for trial in trials for id_ in trial} <= tested

    assert len(set(trials)) == len(trials)

    assert verification_examples(make_lines()) == (examples, trials)

    assert verification_examples(make_lines()[:120]) == ([], [])  # of two characters nobody is left to verify


def test_events_leave_rare_classes_out_and_have_a_fold() -> None:
    rows = [make_row(f"e/{label}_{n}", label=label) for label, size in (("drum", 10), ("rare", 4)) for n in range(size)]

    oscillators = [make_row(f"l/{n}", label="shapes") for n in range(10)]

    examples = event_examples({"sonic_pi": rows, "lmms": oscillators})

    assert {example.label for example in examples} == {"sonic_pi/drum"}

    assert Counter(example.fold for example in examples) == dict.fromkeys(range(5), 2)

    assert Counter(example.split for example in examples) == {"train": 6, "valid": 2, "test": 2}


def test_written_tasks_follow_the_format(tmp_path: Path) -> None:
    rows = [
        ManifestRow(id=f"en/{n}", path=tmp_path / f"{n}.wav", num_samples=8000, sample_rate=16_000, domain="speech",
                    text=f"press {n} press", speaker="s", language="en")
        for n in range(200)
    ]  # fmt: skip

    tasks = write_probe_tasks(tmp_path / "probe", {"asterisk_en": rows}, align(rows))

    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "phones.alignment.tsv",
        "phones.tsv",
        "words.tsv",
    ]

    for name, examples in tasks.items():
        with (tmp_path / "probe" / f"{name}.tsv").open(encoding="utf-8") as stream:
            records = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))

        assert ",".join(records[0]) == (
            "id,utterance,path,num_samples,sample_rate,domain,label,split,fold,start,end,text,speaker,language,kind"
        )

        assert [record["id"] for record in records] == sorted(example.id for example in examples)

        assert {Path(record["path"]).parts[0] for record in records} == {".."}

        assert {record["end"] for record in records if name == "phones"} <= {"0.500"}

    assert set(read_alignment(tmp_path / "probe" / "phones.alignment.tsv")) == {row.id for row in rows}


def test_a_task_that_the_corpora_no_longer_allow_is_removed(tmp_path: Path) -> None:
    events = [make_row(f"e/{n}", label="drum") for n in range(5)]

    write_probe_tasks(tmp_path, {"sonic_pi": events}, {})

    assert (tmp_path / "events.tsv").exists()

    write_probe_tasks(tmp_path, {}, {})

    assert not (tmp_path / "events.tsv").exists()


def test_pretraining_manifests_leave_out_what_the_probes_test_on(tmp_path: Path) -> None:
    corpora = {
        "asterisk_en": make_prompts(),
        "asterisk_fr": [make_row(f"fr/{n}", text=f"appuyez {n}") for n in range(200)],
        "sonic_pi": [make_row(f"e/{n}", label="drum") for n in range(40)],
    }

    write_pretraining_manifests(tmp_path, corpora, hold_out_events=False)

    seen = {row.id for name in ("train", "valid") for row in read_manifest(tmp_path / "speech" / f"{name}.tsv")}

    tested = {example.id for example in phone_examples(corpora["asterisk_en"], align(corpora["asterisk_en"]))
              if example.split == "test"}  # fmt: skip

    assert tested

    assert seen == {row.id for name in ("asterisk_en", "asterisk_fr") for row in corpora[name]} - tested

    assert len(read_manifest(tmp_path / "audio" / "train.tsv")) > 30

    write_pretraining_manifests(tmp_path, corpora, hold_out_events=True)

    assert not read_manifest(tmp_path / "audio" / "train.tsv")

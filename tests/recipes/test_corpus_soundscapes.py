from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.corpus.console import CorpusError
from recipes.corpus.examples import Example, write_examples
from recipes.corpus.soundscapes import main
from spear_plugin.data.alignments import Segment, read_alignment
from spear_plugin.data.manifest import write_manifest
from tests.recipes.probe_corpora import read_task
from tests.recipes.test_corpus_mixtures import RATE, write_tone

CLASSES = {"bell": 440.0, "horn": 1900.0, "rare": 3000.0}
SIZES = ("--train", "3", "--valid", "2", "--test", "2", "--seconds", "4", "--workers", "1", "--classes", "2")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Write a task with two classes of three clips each in every split, and a rarer one."""
    examples = []
    for split in ("train", "valid", "test"):
        for label, frequency in CLASSES.items():
            for number in range(1 if label == "rare" else 3):
                row = write_tone(tmp_path / "clips" / f"{label}_{split}{number}.wav", frequency, 0.2 + 0.1 * number)
                examples.append(Example.of_row(row, label, split))
    write_examples(tmp_path / "events.tsv", examples)
    return tmp_path / "events.tsv"


def make(out: Path, task: Path, *options: str) -> dict[str, list[Segment]]:
    main([str(out), "--task", str(task), *SIZES, *options])
    return read_alignment(out / "soundscapes.alignment.tsv")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def level(waveform: np.ndarray[tuple[int], np.dtype[np.float64]], frequency: float) -> float:
    angles = np.arange(waveform.size) * (2 * np.pi * frequency / RATE)
    return float(np.abs(np.mean(waveform * np.exp(-1j * angles))))


def test_events_are_heard_where_the_alignment_says_and_only_there(tmp_path: Path, task: Path) -> None:
    events = make(tmp_path / "out", task, "--max-events", "1")
    rows = read_rows(tmp_path / "out" / "soundscapes.tsv")
    assert [row["split"] for row in rows] == 3 * ["train"] + 2 * ["valid"] + 2 * ["test"]
    assert {row["id"] for row in rows} == events.keys()
    for row in rows:
        (event,) = events[row["id"]]
        waveform, rate = soundfile.read(tmp_path / "out" / row["path"])
        assert (rate, waveform.size, row["num_samples"]) == (RATE, 4 * RATE, str(4 * RATE))
        assert event.word.split("_")[1].startswith(row["split"])  # a clip of the same split
        first, last = round(event.start * RATE), round(event.end * RATE)
        inside = level(waveform[first:last], CLASSES[event.phone])
        outside = level(np.concatenate([waveform[:first], waveform[last:]]), CLASSES[event.phone])
        assert inside > 20 * outside


def test_the_tasks_can_be_probed_and_scenes_name_all_that_is_heard(tmp_path: Path, task: Path) -> None:
    events = make(tmp_path / "out", task)
    timestamps = read_task(tmp_path / "out" / "soundscapes.tsv")
    scenes = read_task(tmp_path / "out" / "scenes.tsv")
    assert (timestamps.kind, scenes.kind) == ("timestamps", "scenes")
    for row in read_rows(tmp_path / "out" / "scenes.tsv"):
        assert row["label"] == "|".join(sorted({event.phone for event in events[row["id"]]}))
    assert {event.phone for segments in events.values() for event in segments} == {"bell", "horn"}  # the frequent ones
    assert all(1 <= len(segments) <= 4 for segments in events.values())


def test_the_seed_and_the_id_decide(tmp_path: Path, task: Path) -> None:
    backgrounds = [write_tone(tmp_path / "others" / f"low{n}.wav", 50.0 + n, 1.0) for n in range(30)]
    write_manifest(tmp_path / "others.tsv", backgrounds)
    options = ("--with", str(tmp_path / "others.tsv"))
    runs = [("a", ()), ("b", ()), ("c", ("--seed", "2")), ("d", ("--train", "1")), ("e", options)]
    contents = {}
    for name, extra in runs:
        make(tmp_path / name, task, *extra)
        contents[name] = {p.name: p.read_bytes() for p in sorted((tmp_path / name / "audio").iterdir())}
    assert contents["a"] == contents["b"]
    assert not set(contents["a"].values()) & set(contents["c"].values())
    assert contents["d"].items() <= contents["a"].items()  # of fewer, each is the same
    waveform, _ = soundfile.read(tmp_path / "e" / "audio" / "train-0000.flac")
    assert level(waveform, 440.0) < max(level(waveform, 50.0 + n) for n in range(30))


def test_wrong_input_is_named(tmp_path: Path, task: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere.tsv: there is no such task"):
        make(tmp_path / "out", tmp_path / "nowhere.tsv")
    (tmp_path / "bad.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(CorpusError, match=r"bad.tsv: is not a probe task"):
        make(tmp_path / "out", tmp_path / "bad.tsv")
    lines = task.read_text().splitlines()
    task.write_text("\n".join(line for line in lines if "\tvalid\t" not in line) + "\n")
    with pytest.raises(CorpusError, match=r"events.tsv: has no clips in the valid split"):
        make(tmp_path / "out", task)
    write_manifest(tmp_path / "one.tsv", [write_tone(tmp_path / "one.wav", 50.0, 1.0)])
    task.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorpusError, match=r"one.tsv: has too few recordings for a background of the \w+ split"):
        make(tmp_path / "out", task, "--with", str(tmp_path / "one.tsv"))

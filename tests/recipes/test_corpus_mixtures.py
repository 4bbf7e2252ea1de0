from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.corpus.console import run_command
from recipes.corpus.examples import Example, write_examples
from recipes.corpus.mixtures import main
from spear_plugin.data.manifest import ManifestRow, write_manifest
from tests.recipes.probe_corpora import read_task

RATE = 16_000
CLIPS = {"bell": (440.0, 1.0), "horn/1": (880.0, 0.5), "horn/2": (870.0, 2.0), "horn/3": (860.0, 0.8)}
PARTS = {"bell": "train", "horn/1": "test", "horn/2": "train", "horn/3": "valid"}


def write_tone(path: Path, frequency: float, seconds: float) -> ManifestRow:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.2 * np.sin(np.arange(round(seconds * RATE)) * (2 * np.pi * frequency / RATE))
    soundfile.write(path, tone, RATE)
    return ManifestRow(
        id=path.stem, path=path, num_samples=tone.size, sample_rate=RATE, domain="audio", label=path.stem[:4]
    )


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = []
    for id_, (frequency, seconds) in CLIPS.items():
        row = write_tone(tmp_path / "clips" / f"{id_.replace('/', '-')}.wav", frequency, seconds)
        rows.append(Example.of_row(row, row.label, PARTS[id_]))  # type: ignore[arg-type]
    (tmp_path / "task").mkdir()
    write_examples(tmp_path / "task" / "events.tsv", rows)
    return tmp_path / "task" / "events.tsv"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    rows = [write_tone(tmp_path / "others" / f"low{n}.wav", 50.0 * n, 0.7 * n) for n in (1, 2)]
    write_manifest(tmp_path / "others.tsv", rows)
    return tmp_path / "others.tsv"


def mix(out: Path, task: Path, others: Path, *options: str) -> list[dict[str, str]]:
    main([str(out), "--task", str(task), "--with", str(others), "--workers", "1", *options])
    with (out / "events_mixed.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def amplitude(waveform: np.ndarray[tuple[int], np.dtype[np.float64]], frequency: float) -> float:
    angles = np.arange(waveform.size) * (2 * np.pi * frequency / RATE)
    return float(np.abs(np.mean(waveform * np.exp(-1j * angles))) * 2)


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_another_recording_lies_over_the_whole_clip_at_the_ratio_asked_for(
    tmp_path: Path, task: Path, others: Path, snr_db: float
) -> None:
    rows = mix(tmp_path / "out", task, others, "--snr", str(snr_db))
    assert len(rows) == 4
    for row in rows:
        waveform, rate = soundfile.read(tmp_path / "out" / row["path"])
        (frequency, seconds) = CLIPS[row["id"].replace("-", "/")]
        assert (rate, waveform.size, row["num_samples"]) == (RATE, round(seconds * RATE), str(waveform.size))
        for part in np.array_split(waveform, 2):
            clip = amplitude(part, frequency)
            other = max(amplitude(part, 50.0), amplitude(part, 100.0))
            assert clip == pytest.approx(0.2, rel=0.1)
            assert 20 * np.log10(clip / other) == pytest.approx(snr_db, abs=2.0)


def test_the_task_keeps_labels_and_splits_and_can_be_probed(tmp_path: Path, task: Path, others: Path) -> None:
    rows = mix(tmp_path / "out", task, others)
    assert [(row["label"], row["split"]) for row in rows] == [(id_[:4], part) for id_, part in PARTS.items()]
    mixed = read_task(tmp_path / "out" / "events_mixed.tsv")
    assert mixed.name == "events_mixed"
    assert mixed.items.classes == read_task(task).items.classes


def test_the_seed_and_the_id_decide(tmp_path: Path, task: Path, others: Path) -> None:
    first, again, other = (
        [(tmp_path / name / row["path"]).read_bytes() for row in mix(tmp_path / name, task, others, "--seed", seed)]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert first == again
    assert first != other


def test_wrong_input_gives_one_line(
    tmp_path: Path, task: Path, others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "empty.tsv", [])
    (tmp_path / "no_task.tsv").write_text("a\tb\n1\t2\n")
    for task_path, over, message in (
        (tmp_path / "nowhere.tsv", others, "there is no such task"),
        (tmp_path / "no_task.tsv", others, "is not a probe task"),
        (task, tmp_path / "empty.tsv", "has no recordings to put over the clips"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["mixtures", str(tmp_path / "out"), "--task", str(task_path), "--with", str(over)]
        )
        with pytest.raises(SystemExit) as exit_:
            run_command(main)
        assert exit_.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

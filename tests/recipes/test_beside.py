"""Probes of the checkpoints of a training run, by jobs beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.recipes.common import SMALL_MODEL, PretrainRunner
from tests.recipes.test_publishing import read_records, read_scalars

ROOT = Path(__file__).parents[2]

OPTIONS = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "regime.num_steps=4",
    "regime.checkpoint_every_n_steps=2",
    "regime.keep_last_n_checkpoints=2",
    "regime.publish_metrics_every_n_steps=1",
    "dataset.has_validation=false",
]


def write_events(folder: Path) -> Path:
    """Write a task: twelve files of noise or of silence, in three folds."""
    folder.mkdir()
    columns = ("id", "utterance", "path", "num_samples", "sample_rate", "label", "split", "start", "end", "fold")
    lines = ["\t".join(columns)]
    generator = np.random.default_rng(0)
    for number in range(12):
        label = ("noise", "silence")[number % 2]
        scale = 0.3 if label == "noise" else 0.001
        soundfile.write(folder / f"{number}.wav", scale * generator.standard_normal(8000), 16000)
        row = (number, number, f"{number}.wav", 8000, 16000, label, "train", 0.0, 0.5, number // 2 % 3)
        lines.append("\t".join(map(str, row)))
    (folder / "events.tsv").write_text("\n".join(lines) + "\n")
    return folder / "events.tsv"


def watch_command(run: Path, task: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "slurm.watch", "recipes.probe", str(run), "--poll-seconds", "0.5", *options),
        *("--", "--no-rich", "--config", "publish=probe", "baselines=false", f"tasks=[{task}]"),
        *("features=[{name: mine, checkpoint: {checkpoint}}]", "probe.l2_grid=[0.01]", "probe.max_iterations=5"),
    ]


def check_published(run: Path) -> None:
    """Check that the accuracies of steps 2 and 4 stand where training's own metrics stand."""
    scalars = read_scalars(run / "tb" / "probe")
    assert list(scalars) == ["events/mine"]
    assert sorted(scalars["events/mine"]) == [2, 4]
    records = read_records(run / "metrics" / "probe.jsonl")
    assert {record["Step"]: pytest.approx(record["events/mine"]) for record in records} == scalars["events/mine"]
    assert all(0.0 <= record["events/mine"] <= 1.0 for record in records)


@pytest.mark.slow
def test_each_checkpoint_of_a_run_is_probed_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_events(tmp_path / "events")
    runner = PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys, splits=("train",))
    run = tmp_path / "run"
    command = watch_command(run, task, "--cluster", "local", "--jobs", "2")
    watcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # before there is a run
    try:
        assert runner() == (0, [])
        output, _ = watcher.communicate(timeout=300)
    finally:
        watcher.kill()
    assert watcher.returncode == 0, output
    assert output.endswith("2 checkpoints done.\n")
    check_published(run)
    assert sorted(read_scalars(run / "tb" / "train")["Loss"]) == [1, 2, 3, 4]

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.stdout.count("is done already") == 2
    assert "job" not in again.stdout

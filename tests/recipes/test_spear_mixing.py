"""Pre-training with each augmentation: it trains, reaches training only, and resumes to the same weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.common import DATA_FOLDER
from tests.recipes.common import SMALL_MODEL, PretrainRunner

NOISE = f"noise: {{manifest: {DATA_FOLDER / 'audio.tsv'}, snr_db: [10, 20]}}"
MIXINGS = {
    "noise": f"{{speech_probability: 1, noise_probability: 1, audio_probability: 1, {NOISE}}}",
    "clean targets": "{speech_probability: 1, noise_probability: 0, utterance: {targets: clean, snr_db: [-5, 5]}}",
    "token mixing": "{speech_probability: 1, noise_probability: 0, utterance: {targets: mixed, max_delay: 2}}",
}
OPTIONS = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=20",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=1",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys)


def test_each_augmentation_trains_and_leaves_validation_alone(runner: PretrainRunner) -> None:
    # A rate of zero: every difference is one of the data.
    still = "optimizer.config.lr=0.0"
    assert runner(still, "regime.num_steps=2", run="none") == (0, [])
    train, valid = runner.read_steps("train", run="none"), runner.read_steps("valid", run="none")
    for name, mixing in MIXINGS.items():
        assert runner(still, "regime.num_steps=2", f"dataset.mixing={mixing}", run=name) == (0, [])
        losses = [record["Loss"] for record in runner.read_steps("train", run=name).values()]
        assert torch.tensor(losses).isfinite().all()
        assert losses[0] != train[1]["Loss"]
        assert [record["Loss"] for record in runner.read_steps("valid", run=name).values()] == [
            record["Loss"] for record in valid.values()
        ]


def test_a_mixed_run_that_was_stopped_goes_on_to_the_same_weights(runner: PretrainRunner) -> None:
    mixing = f"{{speech_probability: 0.9, noise_probability: 0.4, audio_probability: 0.5, {NOISE}}}"
    option = f"dataset.mixing={mixing}"
    assert runner(option)[0] == 0
    expected = runner.load_weights(4)
    assert runner(option, "regime.num_steps=2", run="stopped")[0] == 0
    # Another number of threads changes nothing either.
    assert runner(option, "dataset.num_parallel=3", run="stopped")[0] == 0
    weights = runner.load_weights(4, run="stopped")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("mixing", "pattern"),
    [
        ("{audio_probability: 0.5}", r"dataset.mixing.*`noise.manifest` must be set"),
        ("{utterance: {targets: both}}", r"targets|clean|both"),
        (
            "{speech_probability: 1, noise: {manifest: nowhere.tsv, snr_db: [20, 10]}}",
            r"`dataset.mixing.noise` is not valid: `snr_db` must be .* but is \[20.*, 10",
        ),
        ("{speech_probability: 1, noise: {manifest: nowhere.tsv}}", r"nowhere.tsv: the manifest cannot be read"),
    ],
)
def test_wrong_options_are_named_in_one_line(runner: PretrainRunner, mixing: str, pattern: str) -> None:
    code, lines = runner(f"dataset.mixing={mixing}")
    assert (code, len(lines)) == (2, 1)
    assert re.search(pattern, lines[0])


def test_missing_noise_is_counted_with_the_skipped_recordings(runner: PretrainRunner, tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    shutil.copytree(DATA_FOLDER / "audio", folder / "audio")
    shutil.copy(DATA_FOLDER / "audio.tsv", folder)
    missing = sorted((folder / "audio").iterdir())[::2]
    for path in missing:
        path.unlink()
    noise = f"noise: {{manifest: {folder / 'audio.tsv'}}}"
    mixing = f"{{speech_probability: 1, noise_probability: 1, audio_probability: 1, {noise}}}"
    assert runner(f"dataset.mixing={mixing}") == (0, [])
    assert runner.read_steps("train")[4]["Total Number of Skipped Recordings"] >= 3
    log = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("rank_0*"))
    assert any(f"of corpus noise ({number} skipped so far)" in log for number in (1, 2))
    assert any(path.name in log for path in missing)

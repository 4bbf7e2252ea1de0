"""Pre-training with each augmentation: it trains, reaches training only, and resumes to the same weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from tests.common import DATA_FOLDER
from tests.recipes.common import call_recipe, read_steps, write_test_codes

CONFIG = "recipes/spear/pretrain/configs/tiny_demo.yaml"
NOISE = f"noise: {{manifest: {DATA_FOLDER / 'audio.tsv'}, snr_db: [10, 20]}}"
MIXINGS = {
    "noise": f"{{speech_probability: 1, noise_probability: 1, audio_probability: 1, {NOISE}}}",
    "clean targets": "{speech_probability: 1, noise_probability: 0, utterance: {targets: clean, snr_db: [-5, 5]}}",
    "token mixing": "{speech_probability: 1, noise_probability: 0, utterance: {targets: mixed, max_delay: 2}}",
}
SMALL_ZIPFORMER = (
    "{subsampling_channels: [2, 4, 4], downsampling_factors: [1, 2], num_layers: [1, 1], encoder_dims: [16, 16], "
    "feedforward_dims: [32, 32], kernel_sizes: [7, 7], num_heads: [2, 2]}"
)
OPTIONS = [
    f"model.config_overrides.zipformer={SMALL_ZIPFORMER}",
    "dataset.max_batch_seconds=20",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=1",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


class Runner:
    """Calls the recipe on the test corpora."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._corpora = write_test_codes(folder / "codes")
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, name: str, *options: str) -> tuple[int, list[str]]:
        lists = [f"dataset.config_overrides.{split}={self._corpora}" for split in ("train", "valid")]
        arguments = [str(self._folder / name), "--config-file", CONFIG, "--config", *lists, *OPTIONS, *options]
        return call_recipe(SpearPretrainRecipe(), arguments, self._monkeypatch, self._capsys)

    def read_steps(self, name: str, split: str) -> dict[int, dict[str, float]]:
        return read_steps(self._folder / name / "metrics" / f"{split}.jsonl")

    def load_weights(self, name: str) -> dict[str, torch.Tensor]:
        (path,) = (self._folder / name / "checkpoints" / "step_4" / "model").rglob("*.pt")
        weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
        return weights


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, monkeypatch, capsys)


def test_each_augmentation_trains_and_leaves_validation_alone(runner: Runner) -> None:
    # A rate of zero: every difference is one of the data.
    still = "optimizer.config.lr=0.0"
    assert runner("none", still, "regime.num_steps=2") == (0, [])
    train, valid = runner.read_steps("none", "train"), runner.read_steps("none", "valid")
    for name, mixing in MIXINGS.items():
        assert runner(name, still, "regime.num_steps=2", f"dataset.mixing={mixing}") == (0, [])
        losses = [record["Loss"] for record in runner.read_steps(name, "train").values()]
        assert torch.tensor(losses).isfinite().all()
        assert losses[0] != train[1]["Loss"]
        assert [record["Loss"] for record in runner.read_steps(name, "valid").values()] == [
            record["Loss"] for record in valid.values()
        ]


def test_a_mixed_run_that_was_stopped_goes_on_to_the_same_weights(runner: Runner) -> None:
    mixing = f"{{speech_probability: 0.9, noise_probability: 0.4, audio_probability: 0.5, {NOISE}}}"
    option = f"dataset.mixing={mixing}"
    assert runner("run", option)[0] == 0
    expected = runner.load_weights("run")
    assert runner("stopped", option, "regime.num_steps=2")[0] == 0
    # Another number of threads changes nothing either.
    assert runner("stopped", option, "dataset.num_parallel=3")[0] == 0
    weights = runner.load_weights("stopped")
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
def test_wrong_options_are_named_in_one_line(runner: Runner, mixing: str, pattern: str) -> None:
    code, lines = runner("run", f"dataset.mixing={mixing}")
    assert (code, len(lines)) == (2, 1)
    assert re.search(pattern, lines[0])


def test_missing_noise_is_counted_with_the_skipped_recordings(runner: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    shutil.copytree(DATA_FOLDER / "audio", folder / "audio")
    shutil.copy(DATA_FOLDER / "audio.tsv", folder)
    missing = sorted((folder / "audio").iterdir())[::2]
    for path in missing:
        path.unlink()
    noise = f"noise: {{manifest: {folder / 'audio.tsv'}}}"
    mixing = f"{{speech_probability: 1, noise_probability: 1, audio_probability: 1, {noise}}}"
    assert runner("run", f"dataset.mixing={mixing}") == (0, [])
    assert runner.read_steps("run", "train")[4]["Total Number of Skipped Recordings"] >= 3
    log = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("rank_0*"))
    assert any(f"of corpus noise ({number} skipped so far)" in log for number in (1, 2))
    assert any(path.name in log for path in missing)

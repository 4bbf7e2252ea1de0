from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fairseq2.models.hub import load_model

from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from spear_plugin.models.spear import SpearModel, get_spear_model_hub
from tests.common import DATA_FOLDER
from tests.recipes.common import call_recipe, read_steps, write_random_codes, write_test_codes

CONFIG = "recipes/spear/pretrain/configs/tiny_demo.yaml"

# A student small enough that a step costs next to nothing.
SMALL_MODEL = (
    "model.config_overrides.zipformer={subsampling_channels: [2, 4, 4], downsampling_factors: [1, 2], "
    "num_layers: [1, 1], encoder_dims: [16, 16], feedforward_dims: [32, 32], kernel_sizes: [7, 7], num_heads: [2, 2]}"
)
SHORT_RUN = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=2",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


class Runner:
    """Calls the recipe on the test corpora."""

    def __init__(
        self, folder: Path, corpora: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.corpora = corpora
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *options: str, corpora: str | None = None, config_file: str = CONFIG) -> tuple[int, list[str]]:
        corpora = corpora or self.corpora
        lists = [f"dataset.config_overrides.{split}={corpora}" for split in ("train", "valid")]
        arguments = [str(self.folder / "run"), "--config-file", config_file, "--config", *lists, *SHORT_RUN, *options]
        return call_recipe(SpearPretrainRecipe(), arguments, self._monkeypatch, self._capsys)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, write_test_codes(tmp_path / "codes"), monkeypatch, capsys)


def test_a_run_with_overrides_trains_validates_and_its_checkpoint_loads_by_card_name(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner("model.config_overrides.alpha=0.75", "optimizer.config.lr=0.01") == (0, [])
    run = runner.folder / "run"
    train, valid = read_steps(run / "metrics" / "train.jsonl"), read_steps(run / "metrics" / "valid.jsonl")
    assert sorted(train) == [1, 2, 3, 4]
    assert sorted(valid) == [2, 4]
    for name in ("Loss", "Speech Loss", "Audio Loss", "Speech Masked Accuracy", "Audio Unmasked Accuracy"):
        assert all(torch.tensor(record[name]).isfinite() for record in (*train.values(), *valid.values()))
    assert valid[4]["Speech Loss"] < valid[2]["Speech Loss"]

    config = get_spear_model_hub().get_arch_config("tiny")
    card = runner.folder / "cards" / "card.yaml"
    card.parent.mkdir()
    model_yaml = (run / "checkpoints" / "model.yaml").read_text()
    card.write_text(
        model_yaml.replace("name: checkpoint", "name: spear_of_the_test")
        + f"\ncheckpoint: {run / 'checkpoints' / 'step_4' / 'model'}\n"
    )
    del config, monkeypatch


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(runner: Runner, tmp_path: Path) -> None:
    assert runner()[0] == 0
    expected = load_weights(tmp_path / "run", 4)
    shutil.rmtree(tmp_path / "run")
    assert runner("regime.num_steps=2")[0] == 0
    assert runner()[0] == 0
    weights = load_weights(tmp_path / "run", 4)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_gradient_accumulation_counts_the_frames_of_all_its_batches(runner: Runner, tmp_path: Path) -> None:
    assert runner("trainer.grad_accumulation.num_batches=2")[0] == 0
    accumulated = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")
    shutil.rmtree(tmp_path / "run")
    assert runner()[0] == 0
    single = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")
    assert accumulated[4]["Total Audio Seconds"] > 1.7 * single[4]["Total Audio Seconds"]


def test_bf16_follows_float32(runner: Runner, tmp_path: Path) -> None:
    assert runner()[0] == 0
    float32 = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")
    shutil.rmtree(tmp_path / "run")
    assert runner("trainer.mixed_precision.mode=auto", "trainer.mixed_precision.dtype=bfloat16")[0] == 0
    bfloat16 = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")
    assert float32[1]["Loss"] != bfloat16[1]["Loss"]
    for step in (1, 4):
        assert bfloat16[step]["Loss"] == pytest.approx(float32[step]["Loss"], rel=0.02)


def test_an_unreadable_file_is_skipped_and_counted(runner: Runner, tmp_path: Path) -> None:
    manifest = tmp_path / "speech.tsv"
    lines = (DATA_FOLDER / "speech.tsv").read_text().splitlines()
    path_column = lines[0].split("\t").index("path")
    rows = [line.split("\t") for line in lines[1:]]
    for row in rows:
        row[path_column] = str((DATA_FOLDER / row[path_column]).resolve())
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, and then nothing")
    rows[3][path_column] = str(bad)
    manifest.write_text("\n".join([lines[0], *("\t".join(row) for row in rows)]) + "\n")
    codes = write_random_codes(tmp_path / "codes_of_bad", manifest, frame_rate_hz=50.0)
    corpora = f"[{{name: speech, manifest: {manifest}, codes: {{speech: {codes}}}}}]"
    code, lines = runner("regime.num_steps=12", "regime.validate_every_n_steps=12", corpora=corpora)
    assert (code, lines) == (0, [])
    skipped = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")[12]["Total Number of Skipped Recordings"]
    assert skipped >= 1
    log = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("rank_0*"))
    assert "bad.wav" in log


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("regime.num_stepz=3", "num_stepz"),
        ("model.config_overrides.alpah=3", "alpah"),
        ("model.config_overrides.alpha=1.5", r"`alpha` must be in \[0, 1\], but is 1.5"),
        ("dataset.max_batch_seconds=many", "max_batch_seconds|many"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(runner: Runner, option: str, pattern: str) -> None:
    code, lines = runner(option)
    assert code == 2
    assert len(lines) == 1
    assert __import__("re").search(pattern, lines[0])


def test_a_missing_corpus_is_named_in_one_line(runner: Runner) -> None:
    corpora = runner.corpora.replace("tests/data/audio.tsv", "tests/data/nowhere.tsv")
    code, lines = runner(corpora=corpora)
    assert (code, len(lines)) == (2, 1)
    assert "nowhere.tsv" in lines[0]


def test_codes_of_two_quantizers_in_one_stream_are_refused_in_one_line(runner: Runner) -> None:
    shutil.rmtree(runner.folder / "codes" / "audio_speech")
    write_random_codes(
        runner.folder / "codes" / "audio_speech", DATA_FOLDER / "audio.tsv", frame_rate_hz=50.0, quantizer="f" * 16
    )
    code, lines = runner()
    assert (code, len(lines)) == (2, 1)
    assert "same teacher and quantizer" in lines[0]


def test_going_on_with_codes_of_another_quantizer_is_refused_in_one_line(runner: Runner) -> None:
    assert runner()[0] == 0
    shutil.rmtree(runner.folder / "codes" / "audio_audio")
    write_random_codes(
        runner.folder / "codes" / "audio_audio", DATA_FOLDER / "audio.tsv", frame_rate_hz=25.0, quantizer="f" * 16
    )
    code, lines = runner("regime.num_steps=6")
    assert (code, len(lines)) == (2, 1)
    assert "targets.json" in lines[0]
    assert "stream 'audio'" in lines[0]


def test_a_store_that_does_not_fit_the_models_streams_is_refused_in_one_line(runner: Runner) -> None:
    code, lines = runner("model.config_overrides.target_streams=[{name: speech, num_codebooks: 16}]")
    assert (code, len(lines)) == (2, 1)
    assert "2 codebooks" in lines[0]
    assert "16" in lines[0]


def test_a_flipped_byte_in_a_code_store_is_named_in_one_line(runner: Runner) -> None:
    shard = next((runner.folder / "codes" / "speech_speech").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, lines = runner()
    assert (code, len(lines)) == (2, 1)
    assert shard.name in lines[0]


def load_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints" / f"step_{step}" / "model").rglob("*.pt")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


__all__ = ["SpearModel", "load_model"]

from __future__ import annotations

import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.device import CPU

from recipes.spidr.pretrain.recipe import SpidrPretrainRecipe
from recipes.stopping import STOPPED_EXIT_CODE
from spear_plugin.models.spidr import SpidrModel, get_spidr_model_hub
from tests.common import DATA_FOLDER
from tests.recipes.common import PretrainRunner, find_run_card

SPIDR_DEMO = "recipes/spidr/pretrain/configs/tiny_demo.yaml"
SPIDR_CORPORA = f"[{{name: speech, manifest: {DATA_FOLDER / 'speech.tsv'}}}]"

# A model small enough that a step costs next to nothing.
_ENCODER = "{dim: 16, num_layers: 3, num_heads: 2, feedforward_dim: 32, pos_conv_kernel: 15, pos_conv_groups: 4}"
SHORT_RUN = [
    "model.config_overrides.feature_extractor={channels: [8, 8, 8, 8, 8, 8, 8]}",
    f"model.config_overrides.encoder={_ENCODER}",
    "model.config_overrides.codebook={num_codebooks: 2, codebook_size: 16}",
    "dataset.max_batch_seconds=8",
    "dataset.min_seconds=0.2",
    "dataset.max_seconds=2",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=2",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


class SpidrRunner(PretrainRunner):
    """Calls `recipes.spidr.pretrain` on the speech in tests/data."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(folder, SHORT_RUN, monkeypatch, capsys, recipe=SpidrPretrainRecipe, corpora=SPIDR_CORPORA)

    def run(self, *options: str, **arguments: str) -> tuple[int, list[str]]:
        return self(*options, **{"config_file": SPIDR_DEMO, **arguments})


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SpidrRunner:
    return SpidrRunner(tmp_path, monkeypatch, capsys)


def changed_names(runner: SpidrRunner, *steps: int) -> set[str]:
    """Return the tensors in which two checkpoints differ."""
    first, second = (runner.load_weights(step) for step in steps)
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_a_run_trains_validates_and_its_checkpoint_loads_by_card_name(runner: SpidrRunner) -> None:
    assert runner.run("metrics.per_layer=true") == (0, [])
    train, valid = runner.read_steps("train"), runner.read_steps("valid")
    assert sorted(train) == [1, 2, 3, 4]
    assert sorted(valid) == [2, 4]
    assert train[1]["Loss"] == pytest.approx(math.log(16), rel=0.15)
    for record in (*train.values(), *valid.values()):
        assert 1.0 < record["Target Perplexity"] < 16.0
        assert 1.0 < record["Predicted Perplexity"] <= 16.0
        assert 0.0 < record["Codebook Usage"] <= 1.0
        assert record["Padding"] == 0.0
        of_layers = [record[f"layer_{layer}_target_perplexity"] for layer in (2, 3)]
        assert sum(of_layers) / 2 == pytest.approx(record["Target Perplexity"])

    model = get_spidr_model_hub().load_model(find_run_card(runner.folder / "run", "checkpoint_step_4"), device=CPU)
    weights = runner.load_weights(4)
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert int(weights["current_step"]) == 4


def test_a_run_on_log_mel_trains_and_loads_with_its_front_end(runner: SpidrRunner) -> None:
    option = "model.config_overrides.feature_extractor={kind: log_mel}"
    assert runner.run(option) == (0, [])
    assert {"feature_projection.projection.weight", "codebooks.sums"} <= changed_names(runner, 2, 4)
    card = find_run_card(runner.folder / "run", "checkpoint_step_4")
    model = get_spidr_model_hub().load_model(card, device=CPU)
    assert model.config.feature_extractor.kind == "log_mel"
    key = "feature_projection.projection.weight"
    assert torch.equal(model.state_dict()[key], runner.load_weights(4)[key])
    code, lines = runner.run(option, "dataset.min_seconds=0.03", run="short")
    assert code == 2
    assert "`dataset.min_seconds` must be at least 0.035" in lines[0]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(runner: SpidrRunner, tmp_path: Path) -> None:
    options = ("model.config_overrides.freeze_step=3", "lr_scheduler.config.stage_ratio=[0.25, 0.25, 0.5]")
    assert runner.run(*options)[0] == 0
    expected, metrics = runner.load_weights(4), runner.read_steps()
    # As if it had ended here. A smaller `regime.num_steps` would change the learning rate.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_4")
    (tmp_path / "run" / "metrics" / "train.jsonl").unlink()
    assert runner.run(*options)[0] == 0
    weights, repeated = runner.load_weights(4), runner.read_steps()
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert sorted(repeated) == [3, 4]
    for name in ("Loss", "Target Perplexity", "Predicted Perplexity"):
        assert repeated[4][name] == metrics[4][name]


def test_a_signal_stops_a_run_with_a_checkpoint_from_which_it_goes_on(
    runner: SpidrRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.run(run="whole") == (0, [])
    forward, num_batches = SpidrModel.forward, 0

    def forward_and_signal(model: SpidrModel, *arguments: Any) -> Any:
        nonlocal num_batches
        num_batches += model.training
        if model.training and num_batches == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(model, *arguments)

    monkeypatch.setattr(SpidrModel, "forward", forward_and_signal)
    assert runner.run() == (STOPPED_EXIT_CODE, [])
    assert {path.name for path in (runner.folder / "run" / "checkpoints").glob("step_*")} == {"step_2", "step_3"}
    assert runner.run() == (0, [])
    expected, actual = (runner.load_weights(4, run=run) for run in ("whole", "run"))
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_every_step_moves_codebooks_and_teacher_and_only_what_has_a_gradient(runner: SpidrRunner) -> None:
    assert runner.run("model.config_overrides.freeze_step=2")[0] == 0
    changed = changed_names(runner, 2, 4)
    assert {"codebooks.sums", "codebooks.counts", "current_step", "mask_embedding"} <= changed
    assert any(name.startswith("teacher.layers.0.") for name in changed)
    assert not any(name.startswith("feature_") for name in changed)  # frozen, in a run that goes on as well
    # no gradient, and so no weight decay either
    assert "student.layers.2.final_layer_norm.weight" not in changed
    assert "student.layers.1.final_layer_norm.weight" in changed


def test_a_run_that_goes_on_after_freezing_leaves_the_frozen_parts_alone(runner: SpidrRunner) -> None:
    assert runner.run("model.config_overrides.freeze_step=2", "regime.num_steps=2")[0] == 0
    assert runner.run("model.config_overrides.freeze_step=2")[0] == 0
    assert not any(name.startswith("feature_") for name in changed_names(runner, 2, 4))


def test_gradient_accumulation_adds_up_the_statistics_of_its_batches(runner: SpidrRunner, tmp_path: Path) -> None:
    option = "model.config_overrides.codebook={num_codebooks: 2, codebook_size: 2, decay: 0.0}"
    every_step = ("regime.checkpoint_every_n_steps=1", "regime.keep_last_n_checkpoints=4")
    counts = {}
    for num_batches in (1, 2):
        assert runner.run(option, *every_step, f"trainer.grad_accumulation.num_batches={num_batches}")[0] == 0
        counts[num_batches] = [runner.load_weights(step)["codebooks.counts"].sum() for step in (1, 2)]
        shutil.rmtree(tmp_path / "run")
    # With a decay of 0 codes hold the masked frames of the last step alone, if they have any.
    assert counts[2][0] == sum(counts[1])


def test_bf16_follows_float32(runner: SpidrRunner, tmp_path: Path) -> None:
    assert runner.run()[0] == 0
    float32 = runner.read_steps()
    shutil.rmtree(tmp_path / "run")
    assert runner.run("trainer.mixed_precision.mode=auto", "trainer.mixed_precision.dtype=bfloat16")[0] == 0
    bfloat16 = runner.read_steps()
    assert float32[1]["Loss"] != bfloat16[1]["Loss"]
    for step in (1, 4):
        assert bfloat16[step]["Loss"] == pytest.approx(float32[step]["Loss"], rel=0.02)


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("regime.num_stepz=3", "num_stepz"),
        ("model.config_overrides.encoder={dim: 15}", r"`dim` must be a multiple"),
        ("dataset.min_seconds=0.01", r"`dataset.min_seconds` must be at least 0.025"),
        ("dataset.max_batch_seconds=1", "`max_batch_seconds` must be at least the longest example"),
        ("dataset.config_overrides.train=[{name: speech, manifest: tests/data/nowhere.tsv}]", "nowhere.tsv"),
        ("dataset.config_overrides.train=[]", "`train` list"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(runner: SpidrRunner, option: str, pattern: str) -> None:
    code, lines = runner.run(option)
    assert code == 2
    assert len(lines) == 1
    assert re.search(pattern, lines[0])

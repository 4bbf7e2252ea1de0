"""Pre-training with the authors' schedules: who tells the model how far training is, and what a resumed run knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import FakeGang

from recipes.spear.pretrain.unit import BatchCounter
from tests.recipes.common import SMALL_ZIPFORMER, PretrainRunner
from tests.unit.models.spear.makers import create_small_model

REGULARIZATION = (
    "{dropout: scheduled, branch_skips: scheduled, layer_skips: scheduled, position_skips: scheduled, "
    "feature_mask_p: 0.125, balancer: scheduled, whitening: scheduled, limits: forced, score_penalty: off}"
)
OPTIONS = [
    f"model.config_overrides.zipformer={{{SMALL_ZIPFORMER}, regularization: {REGULARIZATION}}}",
    "model.config_overrides.target_streams=[{name: speech, num_codebooks: 2}]",
    "dataset.max_batch_seconds=15",
    "dataset.has_validation=false",
    "batch_count.unit_seconds=0.1",
    "batch_count.every_n_steps=2",
    "regime.num_steps=6",
    "regime.validate_every_n_steps=null",
    "regime.score_metric=null",
    "regime.checkpoint_every_n_steps=3",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys, splits=("train",))


def test_a_run_with_schedules_goes_on_bit_for_bit_between_two_settings_of_the_batch_count(
    runner: PretrainRunner,
) -> None:
    assert runner() == (0, [])
    expected = runner.load_weights(6)
    # Set before steps 1, 3 and 5, where 4 steps of 15 s were done.
    assert expected["training_state.batch_count"] == 4 * 150
    shutil.rmtree(runner.folder / "run")
    assert runner("regime.num_steps=3") == (0, [])
    # Step 4 starts from here, with what was set before step 3.
    assert runner.load_weights(3)["training_state.batch_count"] == 2 * 150
    assert runner() == (0, [])
    weights = runner.load_weights(6)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_wrong_unit_is_named_in_one_line(runner: PretrainRunner) -> None:
    code, lines = runner("batch_count.unit_seconds=0")
    assert (code, len(lines)) == (2, 1)
    assert "`unit_seconds` must be positive" in lines[0]


def test_a_wrong_switch_is_named_in_one_line(runner: PretrainRunner) -> None:
    code, lines = runner(
        f"model.config_overrides.zipformer={{{SMALL_ZIPFORMER}, regularization: {{balancer: sometimes}}}}"
    )
    assert (code, len(lines)) == (2, 1)
    assert "Supported values are off, scheduled, forced" in lines[0]


def test_the_batch_count_is_that_of_the_last_tenth_step() -> None:
    model = create_small_model()
    # 300 s on each of 16 processes
    counter = BatchCounter(model, FakeGang(CPU), counts_per_step=300 * 16 / 600, every_n_steps=10)
    counts = []
    for step_nr in range(1, 22):
        counter.set_step_nr(step_nr)
        counts.append(model.training_state.batch_count.item())
    assert counts == [0.0] * 10 + [80.0] * 10 + [160.0]


def test_the_batch_count_goes_on_when_steps_become_longer() -> None:
    model = create_small_model()
    before = BatchCounter(model, FakeGang(CPU), counts_per_step=4.0, every_n_steps=5)
    for step_nr in range(1, 8):
        before.set_step_nr(step_nr)
    after = BatchCounter(model, FakeGang(CPU), counts_per_step=8.0, every_n_steps=5)
    counts = []
    for step_nr in range(8, 17):
        after.set_step_nr(step_nr)
        counts.append(model.training_state.batch_count.item())
    # Steps 6 and 7 count as long ones: the checkpoint knows the count of step 6 only.
    assert counts == [20.0] * 3 + [60.0] * 5 + [100.0]

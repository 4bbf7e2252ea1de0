"""ScaledAdam and Eden chosen by name in the configuration of a recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.recipes.common import SMALL_MODEL, PretrainRunner

SHORT_RUN = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "dataset.has_validation=false",
    "regime.num_steps=8",
    "regime.validate_every_n_steps=null",
    "regime.score_metric=null",
    "regime.checkpoint_every_n_steps=3",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
    "trainer.max_grad_norm=null",
]
OPTIMIZER = [
    "optimizer.name=scaled_adam",
    "optimizer.config={lr: 0.04, clipping_update_period: 2, groups: [{params: '.*heads.*', lr: 0.02}]}",
]
SCHEDULE = [
    "lr_scheduler.name=eden",
    "lr_scheduler.config={decay_steps: 4, decay_hours: 0.0125, batch_seconds: 15, num_warmup_steps: 2}",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, SHORT_RUN, monkeypatch, capsys, splits=("train",))


def test_a_run_follows_the_schedule_and_goes_on_bit_for_bit_where_it_was_stopped(runner: PretrainRunner) -> None:
    assert runner(*OPTIMIZER, *SCHEDULE) == (0, [])
    steps = runner.read_steps()
    for step, record in steps.items():
        # A step is 15 s of 45 s, the fixed point of the hours.
        factor = ((step / 4) ** 2 + 1) ** -0.25 * ((step / 3) ** 2 + 1) ** -0.25 * (0.75 if step == 1 else 1.0)
        assert record["Learning Rate"] == pytest.approx([0.02 * factor, 0.04 * factor])
    expected = runner.load_weights(8)
    shutil.rmtree(runner.folder / "run")
    assert runner(*OPTIMIZER, *SCHEDULE, "regime.num_steps=5") == (0, [])
    assert runner(*OPTIMIZER, *SCHEDULE) == (0, [])
    metrics = (runner.folder / "run" / "metrics" / "train.jsonl").read_text()
    assert metrics.count('"Step": 1,') == 1
    weights = runner.load_weights(8)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([OPTIMIZER[0], "optimizer.config={lr: -1.0}"], "`lr` must be positive, but is -1.0"),
        ([OPTIMIZER[0], "optimizer.config={groups: [{params: a, lr: 0.0}]}"], "`lr` must be positive, but is 0.0"),
        ([OPTIMIZER[0], "optimizer.config={}", "model.dtype=bfloat16"], "Set `model.dtype` to 'float32'"),
        ([SCHEDULE[0], "lr_scheduler.config={warmup_start: 2.0}"], "`warmup_start` must be in [0, 1], but is 2.0"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(runner: PretrainRunner, options: list[str], part: str) -> None:
    code, lines = runner(*options)
    assert (code, len(lines)) == (2, 1)
    assert part in lines[0]

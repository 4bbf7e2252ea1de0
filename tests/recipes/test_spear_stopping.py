"""A signal stops a run with a checkpoint; the same command goes on from there to the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.stopping import STOPPED_EXIT_CODE
from spear_plugin.models.spear import SpearModel
from tests.recipes.common import SMALL_MODEL, PretrainRunner

NUM_STEPS = 6
OPTIONS = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    f"regime.num_steps={NUM_STEPS}",
    "regime.validate_every_n_steps=2",
    "regime.checkpoint_every_n_steps=6",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys)


@pytest.fixture
def signal_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that has a run receive SIGUSR1 within a step."""
    original = SpearModel.forward

    def arrange(step: int) -> None:
        num_batches = 0

        def forward(self: SpearModel, *arguments: Any) -> Any:
            nonlocal num_batches
            num_batches += self.training
            if self.training and num_batches == step:
                os.kill(os.getpid(), signal.SIGUSR1)
            return original(self, *arguments)

        monkeypatch.setattr(SpearModel, "forward", forward)

    return arrange


def test_a_stopped_run_saves_its_step_and_ends_with_the_weights_of_an_uninterrupted_one(
    runner: PretrainRunner, signal_at_step: Callable[[int], None]
) -> None:
    assert runner(run="whole") == (0, [])

    signal_at_step(4)
    assert runner() == (STOPPED_EXIT_CODE, [])
    assert [path.name for path in (runner.folder / "run" / "checkpoints").glob("step_*")] == ["step_4"]
    assert sorted(runner.read_steps("valid")) == [2]  # no time is lost by validating before the end

    signal_at_step(0)
    assert runner() == (0, [])
    assert sorted(runner.read_steps("valid")) == [2, 6]
    expected, actual = (runner.load_weights(NUM_STEPS, run=run) for run in ("whole", "run"))
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_a_signal_in_the_last_step_changes_nothing(
    runner: PretrainRunner, signal_at_step: Callable[[int], None]
) -> None:
    signal_at_step(NUM_STEPS)
    assert runner() == (0, [])
    assert sorted(runner.read_steps("valid")) == [2, 4, 6]

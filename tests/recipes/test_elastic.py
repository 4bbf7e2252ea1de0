"""A checkpoint that other numbers of processes wrote, and what each process of the run finds in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.device import CPU
from fairseq2.recipe.error import RecipeError

from recipes.elastic import _adapt, _check_shards
from tests.recipes.common import SMALL_MODEL, PretrainRunner

OPTIONS = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "dataset.has_validation=false",
    "regime.validate_every_n_steps=null",
    "regime.score_metric=null",
    "regime.num_steps=4",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys, splits=("train",))


def load(folder: Path, rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    trainer = torch.load(folder / "trainer" / f"rank_{rank:02d}.pt", weights_only=False)
    return trainer, torch.load(folder / "data_reader" / f"dp_{rank:02d}.pt", weights_only=False)


def total_of(trainer: dict[str, Any]) -> float:
    (total,) = trainer["_metric_bag"]["total_num_examples"].values()
    return float(total)


def adapt(folder: Path, num_processes: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    _adapt(folder, 2, num_processes=num_processes, device=CPU, seed=2)
    assert len(list((folder / "trainer").iterdir())) == num_processes
    assert len(list((folder / "data_reader").iterdir())) == num_processes
    return [load(folder, rank) for rank in range(num_processes)]


def test_processes_that_come_have_the_place_in_the_data_and_random_numbers_of_their_own(
    runner: PretrainRunner,
) -> None:
    assert runner("regime.num_steps=2") == (0, [])
    folder = runner.folder / "run" / "checkpoints" / "step_2"
    trainer, reader = load(folder, 0)
    processes = adapt(folder, 3)

    assert str(processes[0]) == str((trainer, reader))
    assert [total_of(other) for other, _ in processes] == [total_of(trainer), 0.0, 0.0]
    assert all(str(other) == str(reader) for _, other in processes)
    assert all(other["_step_nr"] == 2 for other, _ in processes)
    generators = {tuple(other["_rng_bag"]["generators"][0].tolist()) for other, _ in processes}
    assert len(generators) == 3


def test_processes_that_go_leave_their_totals_behind(runner: PretrainRunner) -> None:
    assert runner("regime.num_steps=2") == (0, [])
    folder = runner.folder / "run" / "checkpoints" / "step_2"
    (before, _), *_ = adapt(folder, 3)
    for rank in (1, 2):
        path = folder / "trainer" / f"rank_{rank:02d}.pt"
        trainer = torch.load(path, weights_only=False)
        for name in trainer["_metric_bag"]["total_num_examples"]:
            trainer["_metric_bag"]["total_num_examples"][name] += 10.0 * rank
        torch.save(trainer, path)
    processes = adapt(folder, 2)

    # Of processes 0 and 2, and of 1.
    assert [total_of(trainer) for trainer, _ in processes] == [total_of(before) + 20.0, 10.0]


def test_a_model_in_other_pieces_is_refused(tmp_path: Path) -> None:
    shards = tmp_path / "step_2" / "model" / "pp_00" / "tp_00"
    shards.mkdir(parents=True)
    for rank in range(2):
        (shards / f"sdp_0{rank}.pt").touch()
    _check_shards(tmp_path / "step_2", 2)
    with pytest.raises(RecipeError, match=r"step_2 holds its model in 2 piece.*but this run needs 1: go on with"):
        _check_shards(tmp_path / "step_2", 1)

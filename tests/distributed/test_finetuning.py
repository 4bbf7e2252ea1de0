"""Fine-tuning on two processes that speak by gloo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slurm.stages import torchrun
from tests.common import assert_close
from tests.recipes.downstream import SHORT_RUN, save_spear_run, write_corpus, write_tones

TINY_DEMO = "recipes/tagging/finetune/configs/tiny_demo.yaml"


def finetune(folder: Path, corpus: str, num_processes: int, *options: str) -> list[dict[str, Tensor]]:
    """Run the recipe, with FOLDER/run for its output, and return the weights of each process at the end."""
    for path in folder.glob("rank_*.pt"):
        path.unlink()
    folder.mkdir(exist_ok=True)
    launcher = torchrun(num_processes) if num_processes > 1 else ()
    data = [f"dataset.config_overrides.{split}={corpus}" for split in ("train", "valid")]
    command = [
        *(sys.executable, *launcher, "-m", "tests.distributed.finetune_program"),
        *(str(folder), str(folder / "run"), "--no-rich", "--config-file", TINY_DEMO, "--config"),
        *(*data, *SHORT_RUN, "mixup.probability=0", "dataset.max_batch_seconds=2", *options),
    ]
    result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[:6000]
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(num_processes)]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Write sixteen tones with noise of their own; every third has another label."""
    rows = write_tones(tmp_path / "audio", ["a" * length for length in range(1, 17)], label="dog", seconds=0.5)
    labelled = [replace(row, label="bell") if number % 3 == 0 else row for number, row in enumerate(rows)]
    return write_corpus(tmp_path / "train.tsv", labelled)


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.slow
def test_two_processes_have_the_same_weights_and_go_on_to_the_same_ones(tmp_path: Path, corpus: str) -> None:
    source = f"encoder.checkpoint={save_spear_run(tmp_path / 'pretraining')}"
    first, second = finetune(tmp_path / "two", corpus, 2, source)
    # What the whiteners saw in the last step stays in each process until the next one begins.
    assert [name for name in differing(first, second) if not name.endswith(".is_white")] == []
    (path,) = (tmp_path / "two" / "run" / "checkpoints" / "step_4" / "model").rglob("*.pt")
    assert differing(first, torch.load(path, weights_only=True)) == []

    # As if it had ended while the encoder was frozen; it thaws after step 3.
    shutil.rmtree(tmp_path / "two" / "run" / "checkpoints" / "step_4")
    for weights, expected in zip(finetune(tmp_path / "two", corpus, 2, source), (first, second), strict=True):
        assert differing(weights, expected) == []


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_batches_twice_as_large(tmp_path: Path, corpus: str) -> None:
    options = (
        "encoder={family: log_mel}",
        "model.config_overrides.dropout_p=0",
        "model.config_overrides.spec_augment={num_time_masks: 0, num_channel_masks: 0}",
    )
    first, second = finetune(tmp_path / "two", corpus, 2, *options)
    (alone,) = finetune(tmp_path / "one", corpus, 1, *options, "dataset.max_batch_seconds=4")
    assert differing(first, second) == []
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        assert_close(first[name], expected, atol=1e-5, rtol=1e-4)

"""Kill -9 at moments that nobody chose, start the same command again: the weights must not know."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spear_plugin.optim.averaging import RUNNING_AVERAGE_FILE
from tests.distributed.common import start_pretraining, start_recipe
from tests.recipes.common import write_test_codes
from tests.recipes.test_spidr_pretrain import SHORT_RUN, SPIDR_CORPORA, SPIDR_DEMO

NUM_STEPS = 24

Start = Callable[[Path, int], subprocess.Popen[bytes]]
"""Starts a run with an output folder and a number of processes."""

# All of the paper's training that has a state of its own or draws random numbers.
PAPER_OPTIONS = [
    "optimizer.name=scaled_adam",
    "optimizer.config={lr: 0.02, clipping_update_period: 4}",
    "lr_scheduler.name=eden",
    "lr_scheduler.config={batch_seconds: 8, num_warmup_steps: 4}",
    "trainer.max_grad_norm=null",
    "running_average.every_n_steps=2",
    "dataset.mixing={speech_probability: 1, noise_probability: 0, utterance: {targets: mixed, max_delay: 1}}",
    "regime.checkpoint_every_n_steps=2",
]


def create_spear_start(folder: Path) -> Start:
    corpora = write_test_codes(folder)
    return lambda out, num_processes: start_pretraining(
        out, corpora, *PAPER_OPTIONS, num_processes=num_processes, num_steps=NUM_STEPS
    )


def create_spidr_start(folder: Path) -> Start:
    """SpidR's state is also its teacher and codebooks; the front end is frozen in the middle of the run."""
    options = (
        *(*SHORT_RUN, *(f"dataset.config_overrides.{split}={SPIDR_CORPORA}" for split in ("train", "valid"))),
        f"regime.num_steps={NUM_STEPS}",
        "regime.validate_every_n_steps=8",
        "model.config_overrides.ema={start_decay: 0.9, timescale: 10}",
        f"model.config_overrides.freeze_step={NUM_STEPS // 2}",
    )
    return lambda out, num_processes: start_recipe(
        "recipes.spidr.pretrain", out, SPIDR_DEMO, *options, num_processes=num_processes
    )


def last_step(folder: Path) -> int:
    steps = [path.name.removeprefix("step_") for path in (folder / "checkpoints").glob("step_*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def runs_in(command_line: Path, folder: Path) -> bool:
    try:
        return os.fsencode(folder) in command_line.read_bytes().split(b"\0")
    except OSError:
        return False  # it has just ended


def kill_after_step(process: subprocess.Popen[bytes], folder: Path, step: int, delay: float) -> None:
    while last_step(folder) < step and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed"
    # By its output folder, because torchrun gives its workers sessions of their own: they would go on writing.
    while pids := [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if runs_in(path, folder)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        process.poll()


def read_state(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all weights of the last checkpoint and of their running average, if there is one."""
    checkpoint = folder / "checkpoints" / f"step_{NUM_STEPS}"
    (path,) = (checkpoint / "model").rglob("*.pt")
    weights = torch.load(path, weights_only=True)
    average_file = checkpoint / RUNNING_AVERAGE_FILE
    average = load_file(average_file) if average_file.exists() else {}
    tensors = weights | {f"average of {name}": tensor for name, tensor in average.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("create_start", "num_processes"), [(create_spear_start, 1), (create_spear_start, 2), (create_spidr_start, 2)]
)
def test_a_run_killed_twice_ends_with_the_same_bits(
    tmp_path: Path, create_start: Callable[[Path], Start], num_processes: int
) -> None:
    start = create_start(tmp_path / "codes")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, num_processes).wait() == 0

    moments = random.Random()
    for step in sorted(moments.sample(range(2, NUM_STEPS - 6), 2)):
        kill_after_step(start(killed, num_processes), killed, step, delay=moments.uniform(0.0, 0.1))
    interrupted_at = last_step(killed)
    assert interrupted_at < NUM_STEPS
    assert start(killed, num_processes).wait() == 0

    expected, actual = read_state(whole), read_state(killed)
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []
    shutil.rmtree(tmp_path)

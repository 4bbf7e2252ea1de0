"""Jobs on the tests' Slurm: how they are submitted, waited for and looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.recipes.common import SMALL_MODEL, TINY_DEMO
from tests.slurm.cluster import SlurmCluster

NUM_STEPS = 120
PATIENCE = 600.0

OPTIONS = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=8",
    f"regime.num_steps={NUM_STEPS}",
    "regime.checkpoint_every_n_steps=10",
    "regime.publish_metrics_every_n_steps=10",
    "dataset.has_validation=false",
    "common.metric_recorders.tensorboard.enabled=false",
]


def launch(*arguments: str) -> str:
    """Submit a job and return its id."""
    process = subprocess.run(
        [sys.executable, "-m", "slurm.launch", *arguments], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    (job, *_) = re.findall(r"^job (\d+)", process.stdout, re.MULTILINE)
    return str(job)


def launch_training(
    out: Path, corpora: str, *options: str, num_nodes: int = 2, module: str = "recipes.spear.pretrain"
) -> str:
    recipe = [
        "--no-rich",
        "--config-file",
        TINY_DEMO,
        "--config",
        f"dataset.config_overrides.train={corpora}",
        *OPTIONS,
        *options,
    ]
    return launch(module, str(out), "--nodes", str(num_nodes), "--time", "30", "--", *recipe)


def launch_program(out: Path, *behaviours: str, options: tuple[str, ...] = ()) -> str:
    return launch("tests.slurm.program", str(out), "--nodes", "2", *options, "--", *behaviours)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {PATIENCE:.0f} s"
        time.sleep(0.1)


def job_state(cluster: SlurmCluster, job: str) -> str:
    line = cluster.run("scontrol", "show", "job", job, check=False)
    match = re.search(r"JobState=(\w+)", line)
    return match[1] if match else "UNKNOWN"


def wait_for_state(cluster: SlurmCluster, job: str, state: str) -> None:
    wait_until(lambda: job_state(cluster, job) == state, f"{state} job {job}")


def read_log(out: Path, rank: int = 0) -> str:
    return "".join(path.read_text() for path in sorted(out.glob(f"slurm/*/*_{rank}_log.out")))


def last_step(out: Path) -> int:
    """Return the last step of a run that has a checkpoint."""
    names = [path.name.removeprefix("step_") for path in (out / "checkpoints").glob("step_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_next_step(out: Path) -> None:
    """Wait until a run has gone on and saved another step."""
    step = last_step(out)
    wait_until(lambda: last_step(out) > step, f"step after {step} of {out}")
    assert last_step(out) < NUM_STEPS, "the run was too fast to be interrupted"


def load_weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = (out / "checkpoints" / f"step_{NUM_STEPS}" / "model").rglob("*.pt")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def run_pipeline(file: Path, action: str) -> str:
    """Return what ``slurm.pipeline`` prints."""
    command = [sys.executable, "-m", "slurm.pipeline", action, str(file), "--cluster", "slurm"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "200"})
    assert process.returncode == 0, process.stderr
    return process.stdout

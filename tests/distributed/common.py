"""Runs of pre-training recipes on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from slurm.stages import torchrun
from tests.recipes.common import REGULARIZED_MODEL, TINY_DEMO


def start_recipe(
    module: str, folder: Path, config_file: str, *options: str, num_processes: int
) -> subprocess.Popen[bytes]:
    """Start a recipe in a session of its own, each process with one thread."""
    launcher = torchrun(num_processes) if num_processes > 1 else ()
    return subprocess.Popen(
        [
            *(sys.executable, *launcher, "-m", module, str(folder), "--no-rich"),
            *("--config-file", config_file, "--config", *options),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_pretraining(
    folder: Path, corpora: str, *options: str, num_processes: int, num_steps: int
) -> subprocess.Popen[bytes]:
    """Start `recipes.spear.pretrain` on what `write_test_codes` returned."""
    return start_recipe(
        "recipes.spear.pretrain",
        folder,
        TINY_DEMO,
        *(f"dataset.config_overrides.{split}={corpora}" for split in ("train", "valid")),
        REGULARIZED_MODEL,
        "dataset.max_batch_seconds=8",
        f"regime.num_steps={num_steps}",
        "regime.validate_every_n_steps=8",
        "regime.publish_metrics_every_n_steps=1",
        "common.metric_recorders.tensorboard.enabled=false",
        *options,
        num_processes=num_processes,
    )

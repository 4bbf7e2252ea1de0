"""A run of two nodes that goes on with one, and with two again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.recipes.common import read_steps, write_test_codes
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import NUM_STEPS, launch_training, wait_for_next_step, wait_for_state, wait_until

# Hours count for much more than steps.
SCHEDULE = "{name: eden, config: {batch_seconds: 8, num_warmup_steps: 4, decay_hours: 0.05}}"


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_and_more_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    corpora, out = write_test_codes(tmp_path / "codes"), tmp_path / "run"
    for num_nodes in (2, 1):
        job = launch_training(out, corpora, f"lr_scheduler={SCHEDULE}", num_nodes=num_nodes)
        wait_for_next_step(out)
        cluster.run("scancel", job)
        wait_until(lambda job=job: job not in cluster.run("squeue", "--noheader", "--format=%i"), "end")  # type: ignore[misc]
    wait_for_state(cluster, launch_training(out, corpora, f"lr_scheduler={SCHEDULE}"), "COMPLETED")

    log = (out / "logs" / "rank_0.log").read_text()
    assert re.findall(r"was written by (\d) processes, (\d) go on", log) == [("2", "1"), ("1", "2")]
    first, second = (int(step) for step in re.findall(r"Resuming from step (\d+)", log))
    assert 0 < first < second < NUM_STEPS

    # Learning rate of the last step: audio of all steps, of two processes and of one.
    hours = 8 * (2 * NUM_STEPS - (second - first)) / 3600
    factor = ((hours / 0.05) ** 2 + 1) ** -0.25 * ((NUM_STEPS / 7500) ** 2 + 1) ** -0.25
    rate = read_steps(out / "metrics" / "train.jsonl")[NUM_STEPS]["Learning Rate"]
    assert rate == pytest.approx(2e-3 * factor, rel=1e-4)

    folder = out / "checkpoints" / f"step_{NUM_STEPS}" / "data_reader"
    states = [torch.load(folder / f"dp_0{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert str(states[0]) == str(states[1])

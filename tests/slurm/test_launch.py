"""Runs on a Slurm of two nodes that are interrupted in every way, and end with the weights of one that was not."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.recipes.common import write_test_codes
from tests.slurm.cluster import NODES, SlurmCluster
from tests.slurm.jobs import (
    job_state,
    last_step,
    launch_program,
    launch_training,
    load_weights,
    read_log,
    run_pipeline,
    wait_for_next_step,
    wait_for_state,
    wait_until,
)

SECRET = "a-secret-of-mine"


def recipe_processes(out: Path, rank: int) -> list[int]:
    """Return the recipe's own process of a rank: the one that has an output folder as argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_recipe = os.fsencode(out) in (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_recipe and f"RANK={rank}".encode() in variables:
            found.append(int(path.name))
    return found


@pytest.mark.slow
def test_a_run_on_two_nodes_survives_everything_with_the_weights_of_an_uninterrupted_one(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    corpora = write_test_codes(tmp_path / "codes")
    whole, run = tmp_path / "whole", tmp_path / "run"
    jobs = [launch_training(out, corpora) for out in (run, whole)]
    job = jobs[0]

    # Preemption, or the time limit: a checkpoint at whatever step it is, then the queue.
    wait_for_next_step(run)
    cluster.run("scancel", "--signal=USR2", job)
    wait_until(lambda: "Requeued job" in read_log(run), "requeue")
    (step,) = re.findall(r"Stopping training at step (\d+)", read_log(run))
    assert last_step(run) == int(step)
    assert "Stopping" not in read_log(run, rank=1)  # the console is the first process's, but both have stopped there
    assert f"Stopping training at step {step}" in (run / "logs" / "rank_1.log").read_text()

    # The crash of one process.
    wait_for_next_step(run)
    for process in recipe_processes(run, rank=1):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: "restart 1 of 3" in read_log(run) + read_log(run, rank=1), "restart")

    # A node that dies, and comes back.
    wait_for_next_step(run)
    cluster.kill_node(NODES[1])
    wait_until(lambda: job_state(cluster, job) != "RUNNING", "end of a job on a dead node")
    cluster.start_node(NODES[1])

    # An administrator's requeue.
    wait_for_next_step(run)
    cluster.run("scontrol", "requeue", job)

    for job in jobs:
        wait_for_state(cluster, job, "COMPLETED")
    starts = re.findall(r"Resuming from step (\d+)", (run / "logs" / "rank_0.log").read_text())
    assert len(starts) >= 4
    assert int(step) == int(starts[0])
    expected, actual = load_weights(whole), load_weights(run)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


@pytest.fixture(scope="module")
def small_jobs(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Submit stand-ins for recipes all at once; return their ids and folders."""
    folder = tmp_path_factory.mktemp("jobs")
    settings: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        # Ten seconds into a minute the program may not have begun on a busy machine.
        "time limit": (("wait", "ok"), ("--time", "2", "--signal-seconds", "60")),
        "crashing": (("1", "ok"), ()),
        "hopeless": (("1",), ("--max-restarts", "1")),
        "wrong": (("2", "ok"), ()),
        "secretive": (("ok",), ("--tasks-per-node", "2")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUB_TOKEN", SECRET)
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        return {
            name: (launch_program(folder / name, *behaviours, options=options), folder / name)
            for name, (behaviours, options) in settings.items()
        }


def count_starts(out: Path, rank: int = 0) -> int:
    return len(list(out.glob(f"rank-{rank}-start-*")))


@pytest.mark.slow
def test_processes_know_each_other_and_secrets_reach_them_but_no_file(
    cluster: SlurmCluster, small_jobs: dict[str, tuple[str, Path]]
) -> None:
    job, out = small_jobs["secretive"]
    wait_for_state(cluster, job, "COMPLETED")
    environments = [
        dict(line.split("=", 1) for line in (out / f"rank-{rank}-start-0").read_text().splitlines() if "=" in line)
        for rank in range(4)
    ]
    for rank, environment in enumerate(environments):
        assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("4", "2")
        assert environment["LOCAL_RANK"] == str(rank % 2)
        assert environment["SLURMD_NODENAME"] == NODES[rank // 2]
        assert environment["MASTER_ADDR"] == NODES[0]
        assert environment["HUB_TOKEN"] == SECRET
        assert environment["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert len({environment["MASTER_PORT"] for environment in environments}) == 1
    assert not [p for p in (out / "slurm").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.slow
def test_a_crash_is_answered_by_a_restart_and_a_wrong_configuration_is_not(
    cluster: SlurmCluster, small_jobs: dict[str, tuple[str, Path]]
) -> None:
    for name, state, num_starts in (("crashing", "COMPLETED", 2), ("wrong", "FAILED", 1), ("hopeless", "FAILED", 2)):
        job, out = small_jobs[name]
        wait_for_state(cluster, job, state)
        # One task's crash ends the other, which may not have begun.
        assert len({path.name.rpartition("-")[2] for path in out.glob("rank-*-start-*")}) == num_starts
    assert "wrong configuration" in read_log(small_jobs["wrong"][1])


@pytest.mark.slow
def test_a_run_that_reaches_its_time_limit_goes_on_in_another_allocation(
    cluster: SlurmCluster, small_jobs: dict[str, tuple[str, Path]]
) -> None:
    job, out = small_jobs["time limit"]
    wait_for_state(cluster, job, "COMPLETED")
    assert (count_starts(out, 0), count_starts(out, 1)) == (2, 2)
    assert "timed-out" in read_log(out)


PIPELINE = """\
out: {out}
resources: {{time: 10}}
stages:
  first: {{module: tests.slurm.program, options: [ok], resources: {{nodes: 2}}}}
  parts:
    module: tests.slurm.program
    needs: [first]
    array: 3
    arguments: ["${{out}}/${{array_index}}"]
    options: ["1", ok]
  last: {{module: tests.slurm.program, needs: [parts], options: [ok, "${{parts}}"]}}
"""


@pytest.mark.slow
def test_a_pipelines_jobs_wait_for_each_other_and_run_once(cluster: SlurmCluster, tmp_path: Path) -> None:
    file, out = tmp_path / "pipeline.yaml", tmp_path / "out"
    file.write_text(PIPELINE.format(out=out))

    submitted = re.findall(r"job (\d+): (\w+)", run_pipeline(file, "run"))
    assert [name for _, name in submitted] == ["first", "parts", "last"]
    # What is under way is not submitted again.
    assert set(re.findall(r"job (\d+): (\w+)", run_pipeline(file, "run"))) <= set(submitted)

    wait_until((out / "stages" / "last.done").exists, "end of the pipeline")
    # An array whose members crash and start again is done when all of them are.
    started = [(out / folder / "rank-0-start-0").stat().st_mtime for folder in ("first", "parts/2", "last")]
    assert started == sorted(started)
    assert all(count_starts(out / "parts" / str(member)) == 2 for member in range(3))
    assert (out / "stages" / "last.done").stat().st_mtime > (out / "stages" / "parts.2.done").stat().st_mtime

    assert run_pipeline(file, "run") == ""
    assert re.findall(r"^(\w+) +done", run_pipeline(file, "status"), re.MULTILINE) == ["first", "parts", "last"]


SWEEP = """\
out: {out}
values: {{behaviour: ok, seed: 1}}
resources: {{time: 10}}
stages:
  shared: {{module: tests.slurm.program, options: [ok]}}
  train:
    module: tests.slurm.program
    needs: [shared]
    options: ["${{behaviour}}", ok, "${{seed}}"]
  probe: {{module: tests.slurm.program, needs: [shared, train], options: [ok, "${{train}}"]}}
sweep:
  cells:
    good: {{}}
    wrong: {{behaviour: 2}}
  repeat: {{seed: [1, 2]}}
"""


@pytest.mark.slow
def test_a_sweeps_instances_are_arrays_whose_members_fail_alone(cluster: SlurmCluster, tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(SWEEP.format(out=out))

    def run() -> list[tuple[str, str]]:
        return re.findall(r"job (\S+): (\w+)", run_pipeline(file, "run"))

    jobs = run()
    arrays = [{job.split("_")[0] for job, name in jobs if name == stage} for stage in ("shared", "train", "probe")]
    assert [len(ids) for ids in arrays] == [1, 1, 1]
    assert len(jobs) == 1 + 4 + 4
    wait_until(lambda: len(list((out / "stages").glob("probe*.done"))) == 2, "probes of good cells")
    wait_until(lambda: not cluster.run("squeue", "--noheader"), "end of all jobs")
    assert len(list((out / "stages").glob("train*.done"))) == 2
    assert all("behaviour-ok" in path.name for path in (out / "probe").iterdir())

    # Started again, what failed runs, as it now can, and what waited for it.
    again = run()
    assert sorted(name for _, name in again) == ["probe", "probe", "train", "train"]
    wait_until(lambda: len(list((out / "stages").glob("probe*.done"))) == 4, "probes of all cells")

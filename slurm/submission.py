"""Hands jobs to Slurm, or runs them on this machine, by way of submitit."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from submitit import DebugExecutor, Job, LocalExecutor, SlurmExecutor
from submitit.core.core import PicklingExecutor

from slurm.files import LaunchError
from slurm.job import CRASH_FOLDER_PREFIX, RecipeJob
from slurm.resources import Resources

CLUSTERS: Final = ("slurm", "local", "debug")

# Submitit gives up after so many time limits; a long pre-training meets many.
_MAX_NUM_TIMEOUTS: Final = 10_000


def submit(jobs: Sequence[RecipeJob], resources: Resources, *, cluster: str, name: str, folder: Path) -> list[Job[Any]]:
    """Submit one job, or several as an array.

    Args:
        jobs: What to run; all have the same resources.
        resources: What each job asks for.
        cluster: One of `CLUSTERS`.
        name: Shown by squeue.
        folder: Where the jobs' files go: scripts, logs of each task, and what submitit needs.

    Raises:
        LaunchError: The cluster is not there, or cannot give such resources.
    """
    if cluster == "debug":
        executor: PicklingExecutor | DebugExecutor = DebugExecutor(folder)
    elif cluster == "local":
        executor = _local_executor(resources, folder)
    elif shutil.which("sbatch") is None:
        raise LaunchError("There is no Slurm on this machine (no `sbatch`): use `--cluster local`, or log in to one.")
    else:
        executor = _slurm_executor(resources, jobs[0].root, name, folder)
    return executor.submit_array(list(jobs)) if len(jobs) > 1 else [executor.submit(jobs[0])]


def script(resources: Resources, *, root: Path, name: str, folder: Path, num_jobs: int = 1) -> str:
    """Return what sbatch would get, without submitting anything or needing Slurm."""
    executor = _slurm_executor(resources, root, name, folder)
    if num_jobs > 1:
        executor.parameters["map_count"] = num_jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def explain_failure(log: Path) -> str:
    """Return why a job failed, from the log of its first task."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    reasons = [line.partition("JobError: ")[2] for line in lines if "JobError: " in line]
    return reasons[-1] if reasons else "it did not say why."


@final
class _SlurmExecutor(SlurmExecutor):
    """Submitit's own, which also makes scripts where Slurm is not installed."""

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        return 2


def _slurm_executor(resources: Resources, root: Path, name: str, folder: Path) -> SlurmExecutor:
    executor = _SlurmExecutor(folder / "%j", max_num_timeout=_MAX_NUM_TIMEOUTS)
    optional = {
        "mem": f"{round(1024 * resources.mem_gb)}M" if resources.mem_gb else None,
        "gpus_per_node": resources.gpus_per_node or None,
        "exclusive": resources.exclusive or None,
        **{
            key: getattr(resources, key)
            for key in ("partition", "account", "qos", "constraint", "exclude", "dependency")
        },
    }
    exports = [f"export {key}={shlex.quote(value)}" for key, value in resources.environment.items()]
    executor.update_parameters(
        job_name=name,
        nodes=resources.nodes,
        ntasks_per_node=resources.num_tasks_per_node,
        cpus_per_task=resources.cpus_per_task,
        time=resources.time_minutes,
        stderr_to_stdout=True,
        signal_delay_s=resources.signal_seconds,
        array_parallelism=resources.array_parallelism,
        setup=[*resources.setup, *exports, _requeue_on_exit(folder, resources.max_restarts)],
        # One task's end with an error ends the others, which would wait for it; srun does not take over the cores.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}"],
        additional_parameters={"requeue": True, "chdir": str(root)}
        | ({"kill-on-invalid-dep": "yes"} if resources.dependency else {}),
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def _requeue_on_exit(folder: Path, max_restarts: int) -> str:
    """Return a line of shell that requeues a job whose tasks ended before one of them could.

    When a node is lost, srun kills the other tasks within seconds. The tasks' own count of crashes goes on: what
    they have decided stays, and a job that Slurm itself ends or requeues at the moment is left alone.
    """
    lines = (
        "status=$?",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        f"crashes={shlex.quote(str(folder))}/{CRASH_FOLDER_PREFIX}${{job:-$SLURM_JOB_ID}}",
        "start=$crashes/start-${SLURM_RESTART_COUNT:-0}",
        'if [ $status -ne 0 ] && [ ! -e "$start" ] && scontrol show job -o $SLURM_JOB_ID | grep -q JobState=RUNNING',
        'then mkdir -p "$crashes"; touch "$start"',
        f'if [ $(ls "$crashes" | wc -l) -le {max_restarts} ]; then scontrol requeue $SLURM_JOB_ID; sleep 30; fi',
        "fi",
    )
    return f"requeue_on_exit() {{ {'; '.join(lines)}; }}; trap requeue_on_exit EXIT"


def _local_executor(resources: Resources, folder: Path) -> LocalExecutor:
    if resources.nodes > 1:
        raise LaunchError(f"This machine is one node, but `nodes` is {resources.nodes}: use `--tasks-per-node`.")
    executor = LocalExecutor(folder / "%j", max_num_timeout=_MAX_NUM_TIMEOUTS, python=shlex.quote(sys.executable))
    executor.update_parameters(
        tasks_per_node=resources.num_tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=resources.time_minutes,
        stderr_to_stdout=True,
        signal_delay_s=resources.signal_seconds,
        setup=[f"export {key}={shlex.quote(value)}" for key, value in resources.environment.items()],
    )
    return executor

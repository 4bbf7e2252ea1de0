"""What runs on the nodes: each task starts the recipe as a child and looks after it.

Signals that reach a task, and what becomes of them:

* SIGUSR2, before the time limit or a preemption (``--signal`` of sbatch, ``scancel --signal=USR2``): the recipe saves a
  checkpoint, the job is requeued and goes on from there.
* SIGTERM (``scancel``, and preemption on clusters that give a grace time): the recipe saves a checkpoint and ends.
* SIGUSR1 (``scancel --signal=USR1``): the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, final

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment

from slurm.files import Mark

CONFIG_EXIT_CODE: Final = 2
"""Of a recipe with a wrong configuration or input: starting it again cannot help."""

STOPPED_EXIT_CODE: Final = 75
"""Of a recipe that a signal stopped before its end (`recipes.stopping`)."""

CRASH_FOLDER_PREFIX: Final = "crashes-"
"""The folder with this name and the job's number holds a file for each start of the job that failed."""

_PR_SET_PDEATHSIG: Final = 1
_POLITE_SECONDS: Final = 5.0
_PATIENT_SECONDS: Final = 120.0


class JobError(RuntimeError):
    """A recipe failed; the message says what becomes of the job."""


@final
@dataclass
class RecipeJob:
    """A call of a module on all tasks of a job; submitit pickles it. Secrets stay in the environment, outside."""

    arguments: tuple[str, ...]
    """Of the Python interpreter: ``("-m", MODULE, OUT, ...)``."""

    root: Path
    """Where the code is; the working directory."""

    max_restarts: int = 0
    """How often the job is started again after a crash."""

    state_folder: Path = field(default_factory=Path)
    """Where crashes of the job are counted, visible to all nodes."""

    mark: Mark | None = None
    """Written when the module is finished."""

    def __post_init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stop_requested = False

    def __call__(self) -> None:
        """Run the module in a child process until it ends.

        Raises:
            JobError: The child failed. The job is requeued before, unless it failed too often or by its configuration.
        """
        environment = JobEnvironment()
        numbers = [signal.SIGTERM, signal.SIGUSR1]
        if environment.global_rank != 0:
            numbers.append(environment._usr_sig())  # in the first task, submitit handles it: it calls `checkpoint`
        for number in numbers:
            signal.signal(number, lambda *_: self._request_stop())
        start = time.monotonic()
        status = self._run_child(environment)
        if status == 0:
            if self.mark is not None and environment.global_rank == 0:
                self.mark.write(time.monotonic() - start)
        elif self._stop_requested or status == STOPPED_EXIT_CODE:
            _wait_for_the_end(environment)
            raise JobError("The recipe was stopped before its end; the same command goes on.")
        else:
            self._handle_failure(environment, status)

    def checkpoint(self) -> DelayedSubmission:
        """Have the recipe save its state; submitit calls it in the first task on SIGUSR2 and requeues the result."""
        self._request_stop()
        if self._child is not None:
            # This is a signal handler that interrupted `wait`, which holds the child's lock.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))

    def _run_child(self, environment: JobEnvironment) -> int:
        if self._stop_requested:
            return STOPPED_EXIT_CODE
        self._child = subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=self.root,
            env=os.environ | distributed_environment() | _recipe_environment(os.environ),
            preexec_fn=_prepare_child,  # noqa: PLW1509  (this process has one thread)
        )
        print(f"task {environment.global_rank}: {' '.join(self.arguments)}", flush=True)
        return self._child.wait()

    def _request_stop(self) -> None:
        self._stop_requested = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGUSR1)

    def _handle_failure(self, environment: JobEnvironment, status: int) -> None:
        where = f"task {environment.global_rank} on {environment.hostname}"
        if status == CONFIG_EXIT_CODE:
            self._count_crash(environment)  # settled: the job's script does not requeue it
            time.sleep(_POLITE_SECONDS * (environment.global_rank != 0))  # the first task says what is wrong
            raise JobError(f"{where}: wrong configuration or input; the lines with ERROR say which.")
        num_crashes = self._count_crash(environment)
        if num_crashes is None:  # the job is being requeued for another task
            _wait_for_the_end(environment)
        elif num_crashes <= self.max_restarts:
            print(f"{where}: ended with code {status}; restart {num_crashes} of {self.max_restarts}.", flush=True)
            environment._requeue(self.max_restarts - num_crashes)  # submitit's way for each kind of cluster
            _wait_for_the_end(environment)
        raise JobError(f"{where}: ended with code {status}, and restarts are limited to {self.max_restarts}.")

    def _count_crash(self, environment: JobEnvironment) -> int | None:
        """Return the number of crashes so far, or None if another task has counted this one."""
        folder = self.state_folder / f"{CRASH_FOLDER_PREFIX}{environment.job_id}"
        folder.mkdir(parents=True, exist_ok=True)
        if environment.cluster == "slurm":
            start = os.environ.get("SLURM_RESTART_COUNT", "0")
        elif environment.global_rank == 0:
            start = str(len(list(folder.iterdir())))
        else:
            return None
        try:
            (folder / f"start-{start}").touch(exist_ok=False)
        except FileExistsError:
            return None
        return len(list(folder.iterdir()))


def distributed_environment() -> dict[str, str]:
    """Return what torch.distributed and fairseq2 need to know of this task.

    With RANK and WORLD_SIZE set, fairseq2's ``common.cluster=auto`` leaves the rest alone: its own Slurm mode would
    overwrite CUDA_VISIBLE_DEVICES, which is right as Slurm sets it.
    """
    here = TorchDistributedEnvironment()
    return {
        "MASTER_ADDR": here.master_addr,
        "MASTER_PORT": str(here.master_port),
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.world_size),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.local_world_size),
    }


def _recipe_environment(environment: Mapping[str, str]) -> dict[str, str]:
    num_threads = environment.get("OMP_NUM_THREADS") or environment.get("SLURM_CPUS_PER_TASK") or "1"
    return {
        "OMP_NUM_THREADS": num_threads,
        "PYTHONUNBUFFERED": "1",
        "FAIRSEQ2_EXTENSION_TRACE": "1",
        "COLUMNS": environment.get("COLUMNS", "160"),  # logs are no terminal, whose width rich would look for
    }


def _prepare_child() -> None:
    """Leave signals that are meant for the task to it, even where Slurm sends them to all processes of a step."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A task that is killed takes its child along.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_the_end(environment: JobEnvironment) -> None:
    """Wait while Slurm ends or requeues the job: a task that ended now would take the others with it."""
    if environment.cluster == "slurm":
        time.sleep(_PATIENT_SECONDS)

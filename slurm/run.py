"""Runs a plan: side by side on this machine, or as jobs of Slurm that depend on each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from slurm.files import LaunchError, Mark, write_atomically
from slurm.job import RecipeJob
from slurm.plan import Plan, PlannedStage
from slurm.resources import Resources
from slurm.snapshot import save_code_state
from slurm.stages import Stage, stage_mark
from slurm.submission import submit

ALIVE: Final = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING")

NO_ANSWER: Final = "NO ANSWER"


def local_stages(plan: Plan, num_cores: int) -> list[Stage]:
    """Return the plan's commands for a `StageRunner`; the processes of a job become those of torchrun."""
    members = {stage.name: member_names(stage) for stage in plan.stages}
    return [
        Stage(
            name=name,
            title=name if len(stage.commands) > 1 else stage.title,
            arguments=(*torchrun(stage.resources), *command),
            needs=tuple(member for need in stage.needs for member in members[need]),
            num_threads=min(num_cores, stage.resources.num_tasks * stage.resources.cpus_per_task),
            num_processes=stage.resources.num_tasks,
        )
        for stage in plan.stages
        for name, command in zip(members[stage.name], stage.commands, strict=True)
    ]


def torchrun(resources: Resources) -> tuple[str, ...]:
    """Return the arguments before a command that has several processes on this machine."""
    if resources.num_tasks == 1:
        return ()
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={resources.num_tasks}")


def member_names(stage: PlannedStage) -> list[str]:
    """Return the names of a stage's commands."""
    if len(stage.commands) == 1:
        return [stage.name]
    return [f"{stage.name}.{index}" for index in range(len(stage.commands))]


def member_mark(plan: Plan, stage: PlannedStage, index: int, *, is_local: bool) -> Mark:
    """Return the mark of a stage's command. Commands of this machine carry torchrun with them."""
    command = stage.commands[index]
    arguments = (*torchrun(stage.resources), *command) if is_local else command
    return stage_mark(plan.out, member_names(stage)[index], arguments)


@final
class SlurmRunner:
    """Submits what is not finished and not in the queue already.

    Args:
        plan: The plan.
        root: Where the code is.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self._plan = plan
        self._root = root
        self._code_is_saved = False

    def run(self) -> dict[str, str]:
        """Submit the stages; return the job of each that is under way."""
        jobs: dict[str, str] = {}
        for stage in self._plan.stages:
            if (job := self._submit(stage, [jobs[need] for need in stage.needs if need in jobs])) is not None:
                jobs[stage.name] = job
        return jobs

    def _submit(self, stage: PlannedStage, dependencies: list[str]) -> str | None:
        marks = [member_mark(self._plan, stage, i, is_local=False) for i in range(len(stage.commands))]
        # What a need makes anew makes this stage's results old.
        pending = [i for i, mark in enumerate(marks) if dependencies or mark.read() is None]
        if not pending:
            return None
        record = JobRecord(self._plan.out, stage.name, stage.commands)
        if (job := record.find_alive()) is not None:
            return job
        folder = self._plan.out / "logs" / "slurm"
        resources = stage.resources
        if dependencies:
            resources = resources.changed({"dependency": f"afterok:{':'.join(dependencies)}"}, stage.name)
        work = [
            RecipeJob(
                arguments=stage.commands[i],
                root=self._root,
                max_restarts=resources.max_restarts,
                state_folder=folder,
                mark=marks[i],
            )
            for i in pending
        ]
        if not self._code_is_saved:
            save_code_state(self._root, folder, sys.argv)
            self._code_is_saved = True
        for i in pending:
            marks[i].path.unlink(missing_ok=True)
        submitted = submit(work, resources, cluster="slurm", name=stage.name, folder=folder)
        job = str(submitted[0].job_id).split("_")[0]
        record.write(job, [str(s.paths.stdout) for s in submitted])
        return job


@final
class JobRecord:
    """Which job runs a stage's commands: ``FOLDER/stages/NAME.job``."""

    def __init__(self, folder: Path, name: str, commands: Sequence[Sequence[str]]) -> None:
        self._path = folder / "stages" / f"{name}.job"
        self._commands = [list(command) for command in commands]

    def write(self, job: str, logs: list[str]) -> None:
        """Record a job."""
        write_atomically(self._path, json.dumps({"job": job, "commands": self._commands, "logs": logs}))

    def read(self) -> dict[str, Any] | None:
        """Return ``job`` and ``logs``, or None if the stage, with its present command, has not been submitted."""
        try:
            record: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if record.get("commands") == self._commands else None

    def find_alive(self) -> str | None:
        """Return the stage's job if it waits or runs."""
        record = self.read()
        if record is None or job_state(record["job"]) not in ALIVE:
            return None
        return str(record["job"])


def job_state(job: str) -> str:
    """Return a job's state in Slurm's words, UNKNOWN if the controller has forgotten it, `NO_ANSWER` if it is away."""
    try:
        process = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"],
            check=False,  # of a job that it has forgotten, squeue says that the id is invalid
            capture_output=True,
            text=True,
        )
    except OSError:
        raise LaunchError("There is no Slurm on this machine (no `squeue`): use `--cluster local`.") from None
    if process.returncode != 0 and "Invalid job id" not in process.stderr:
        return NO_ANSWER
    states = process.stdout.split()
    return next((state for state in states if state in ALIVE), states[0] if states else "UNKNOWN")


def default_num_cores() -> int:
    """Return the cores of this machine."""
    return os.cpu_count() or 1

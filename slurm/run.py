"""Runs a plan: side by side on this machine, or as jobs of Slurm that depend on each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, final

from submitit import Job

from slurm.files import LaunchError, Mark, write_atomically
from slurm.job import RecipeJob
from slurm.plan import Plan, PlannedStage
from slurm.resources import Resources
from slurm.snapshot import save_code_state
from slurm.stages import Stage, stage_mark, torchrun
from slurm.submission import submit

ALIVE: Final = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "RESIZING")

NO_ANSWER: Final = "NO ANSWER"

_Waiting = tuple[PlannedStage, tuple[str, ...]]
"""An instance of a stage, and the jobs that it waits for."""


def local_stages(plan: Plan, num_cores: int) -> list[Stage]:
    """Return the plan's commands for a `StageRunner`; the processes of a job become those of torchrun."""
    members = {stage.name: member_names(stage) for stage in plan.stages}
    return [
        Stage(
            name=name,
            title=name if len(stage.commands) > 1 else stage.title,
            arguments=(*_launcher(stage.resources), *command),
            needs=tuple(member for need in stage.needs for member in members[need]),
            num_threads=min(num_cores, stage.resources.num_tasks * stage.resources.cpus_per_task),
            num_processes=stage.resources.num_tasks,
        )
        for stage in plan.stages
        for name, command in zip(members[stage.name], stage.commands, strict=True)
    ]


def _launcher(resources: Resources) -> tuple[str, ...]:
    return torchrun(resources.num_tasks) if resources.num_tasks > 1 else ()


def member_names(stage: PlannedStage) -> list[str]:
    """Return the names of a stage's commands."""
    if len(stage.commands) == 1:
        return [stage.name]
    return [f"{stage.name}.{index}" for index in range(len(stage.commands))]


def member_mark(plan: Plan, stage: PlannedStage, index: int, *, is_local: bool) -> Mark:
    """Return the mark of a stage's command. Commands of this machine carry torchrun with them."""
    command = stage.commands[index]
    arguments = (*_launcher(stage.resources), *command) if is_local else command
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
        """Submit the stages; return the job of each that is under way, ``ID`` or ``ID_INDEX`` of an array."""
        jobs: dict[str, str] = {}
        # A plan's order has the instances of a stage side by side.
        for _, instances in groupby(self._plan.stages, key=lambda stage: stage.stage):
            waiting = []
            for stage in instances:
                dependencies = tuple(jobs[need] for need in stage.needs if need in jobs)
                if not (pending := self._pending(stage, dependencies)):
                    continue
                if (job := JobRecord(self._plan.out, stage.name, stage.commands).find_alive()) is not None:
                    jobs[stage.name] = job
                elif len(stage.commands) > 1:
                    jobs[stage.name] = self._submit_members(stage, pending, dependencies)
                else:
                    waiting.append((stage, dependencies))
            for dependency, stages in arrays_of(waiting):
                jobs |= self._submit_array(stages, dependency)
        return jobs

    def _pending(self, stage: PlannedStage, dependencies: Sequence[str]) -> list[int]:
        """Return which commands of a stage are to be run. What a need makes anew makes all of its results old."""
        marks = [member_mark(self._plan, stage, i, is_local=False) for i in range(len(stage.commands))]
        return [i for i, mark in enumerate(marks) if dependencies or mark.read() is None]

    def _submit_members(self, stage: PlannedStage, pending: list[int], dependencies: Sequence[str]) -> str:
        """Submit the commands of one stage, as an array if there are several."""
        dependency = f"afterok:{':'.join(dependencies)}" if dependencies else None
        submitted = self._submit([(stage, i) for i in pending], dependency, stage.name)
        job = str(submitted[0].job_id).split("_")[0]
        JobRecord(self._plan.out, stage.name, stage.commands).write(job, [str(s.paths.stdout) for s in submitted])
        return job

    def _submit_array(self, stages: Sequence[PlannedStage], dependency: str | None) -> dict[str, str]:
        """Submit instances of a stage, as an array if there are several; return the job of each."""
        name = stages[0].name if len(stages) == 1 else stages[0].stage
        submitted = self._submit([(stage, 0) for stage in stages], dependency, name)
        for stage, job in zip(stages, submitted, strict=True):
            JobRecord(self._plan.out, stage.name, stage.commands).write(str(job.job_id), [str(job.paths.stdout)])
        return {stage.name: str(job.job_id) for stage, job in zip(stages, submitted, strict=True)}

    def _submit(self, members: Sequence[tuple[PlannedStage, int]], dependency: str | None, name: str) -> list[Job[Any]]:
        folder = self._plan.out / "logs" / "slurm"
        resources = members[0][0].resources
        if dependency is not None:
            resources = resources.changed({"dependency": dependency}, name)
        work = []
        for stage, index in members:
            mark = member_mark(self._plan, stage, index, is_local=False)
            mark.path.unlink(missing_ok=True)
            job = RecipeJob(
                arguments=stage.commands[index],
                root=self._root,
                max_restarts=resources.max_restarts,
                state_folder=folder,
                mark=mark,
            )
            work.append(job)
        if not self._code_is_saved:
            save_code_state(self._root, folder, sys.argv)
            self._code_is_saved = True
        return submit(work, resources, cluster="slurm", name=name, folder=folder)


def arrays_of(waiting: Sequence[_Waiting]) -> Iterator[tuple[str | None, list[PlannedStage]]]:
    """Put instances of a stage together that can be one array; yield each array with what it waits for.

    They can if they wait for the same jobs, or each for another member of one array, in its order: Slurm then starts a
    member when its counterpart is done.

    Args:
        waiting: The instances, and the jobs that each waits for.
    """
    for group in _grouped(waiting, lambda jobs: tuple(job.partition("_")[0] for job in jobs)):
        common, counterparts = [], []
        indices = [str(index) for index in range(len(group))]
        for column in zip(*(jobs for _, jobs in group), strict=True):
            if len(set(column)) == 1:
                common.append(column[0])
            elif [job.partition("_")[2] for job in column] == indices:
                counterparts.append(column[0].partition("_")[0])
            else:
                for together in _grouped(group, lambda jobs: jobs):
                    yield _dependency(together[0][1], ()), [stage for stage, _ in together]
                break
        else:
            yield _dependency(common, counterparts), [stage for stage, _ in group]


def _dependency(jobs: Sequence[str], counterparts: Sequence[str]) -> str | None:
    parts = [f"afterok:{':'.join(jobs)}"] if jobs else []
    return ",".join([*parts, *(f"aftercorr:{array}" for array in counterparts)]) or None


def _grouped(waiting: Sequence[_Waiting], key: Callable[[tuple[str, ...]], tuple[str, ...]]) -> list[list[_Waiting]]:
    groups: dict[tuple[str, ...], list[_Waiting]] = {}
    for stage, jobs in waiting:
        groups.setdefault(key(jobs), []).append((stage, jobs))
    return list(groups.values())


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

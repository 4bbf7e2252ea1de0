"""Jobs beside a training run, one for each of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

from submitit import Job
from submitit.core.utils import FailedJobError

from slurm.files import Mark
from slurm.job import RecipeJob
from slurm.progress import planned_steps
from slurm.resources import Resources
from slurm.run import ALIVE, NO_ANSWER, JobRecord, job_state
from slurm.stages import stage_mark
from slurm.submission import explain_failure, submit

# A job that is complete has left its mark, but a file system may show it late.
_UNDER_WAY: Final = (*ALIVE, "COMPLETED", NO_ANSWER)

State = Literal["pending", "submitted", "done", "failed", "deleted"]


def find_checkpoints(run: Path) -> list[int]:
    """Return the steps whose checkpoints are complete; until then, fairseq2 calls their folders ``step_N.tmp``."""
    names = [path.parent.name.removeprefix("step_") for path in (run / "checkpoints").glob("step_*/model")]
    return sorted(int(name) for name in names if name.isdecimal())


@final
@dataclass(kw_only=True)
class CheckpointWatcher:
    """Submits a job for each new checkpoint of a run and follows it to its end."""

    run: Path
    """Output folder of the training."""

    folder: Path
    """Where output, logs and marks of the jobs go."""

    arguments: tuple[str, ...]
    """Of the Python interpreter, with ``{out}``, ``{checkpoint}``, ``{run}`` and ``{step}``."""

    root: Path
    """Where the code is."""

    resources: Resources

    cluster: str

    every_n_steps: int = 1

    max_num_jobs: int = 1

    _states: dict[int, State] = field(default_factory=dict)
    """By steps."""

    _jobs: dict[int, Job[Any]] = field(default_factory=dict)
    """Those that this process has submitted."""

    def poll(self) -> Iterator[str]:
        """Look once at checkpoints and jobs, submit what is due; yield a line for each thing that happened."""
        last = planned_steps(self.run)
        for step in find_checkpoints(self.run):
            if step not in self._states and (step % self.every_n_steps == 0 or step == last):
                is_done = self._mark(step).read() is not None
                self._states[step] = "done" if is_done else "pending"
                yield f"step {step}: {'is done already' if is_done else 'has a checkpoint'}"
        for step in self._steps("submitted"):
            yield from self._follow(step)
        for step in self._steps("pending"):
            if not self._has_checkpoint(step):
                self._states[step] = "deleted"
                yield f"step {step}: the checkpoint was deleted before there was a job for it"
            elif len(self._steps("submitted")) < self.max_num_jobs:
                yield from self._submit(step)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._steps("pending") and not self._steps("submitted")

    @property
    def is_finished(self) -> bool:
        """Whether training has saved its last step, and no job is to be waited for."""
        last = planned_steps(self.run)
        return last is not None and max(self._states, default=-1) >= last and self.is_idle

    @property
    def has_failures(self) -> bool:
        """Whether a job failed."""
        return bool(self._steps("failed"))

    def summary(self) -> str:
        """Return in one line how many checkpoints came to what end."""
        text = f"{len(self._steps('done'))} checkpoints done"
        if failed := self._steps("failed"):
            text += f"; {len(failed)} failed (steps {_join(failed)}), start the same command again to try them again"
        if deleted := self._steps("deleted"):
            text += (
                f"; {len(deleted)} deleted by training before their jobs started (steps {_join(deleted)}), see "
                "regime.keep_last_n_checkpoints, --jobs and --every-n-steps"
            )
        return f"{text}."

    def _steps(self, state: State) -> list[int]:
        return sorted(step for step, s in self._states.items() if s == state)

    def _has_checkpoint(self, step: int) -> bool:
        return (self.run / "checkpoints" / f"step_{step}" / "model").is_dir()

    def _submit(self, step: int) -> Iterator[str]:
        record = self._record(step)
        self._states[step] = "submitted"
        if self.cluster == "slurm" and (alive := record.find_alive()) is not None:
            yield f"step {step}: job {alive} is under way already"
            return
        folder, command = self.folder / "slurm", self._command(step)
        work = RecipeJob(
            arguments=command,
            root=self.root,
            max_restarts=self.resources.max_restarts,
            state_folder=folder,
            mark=self._mark(step),
        )
        name = f"{self.folder.name}-{step}"
        try:
            (job,) = submit([work], self.resources, cluster=self.cluster, name=name, folder=folder)
        except FailedJobError as ex:  # such as a limit on jobs in the queue, or a controller that is away
            self._states[step] = "pending"
            yield f"step {step}: cannot be submitted now, trying again: {' '.join(str(ex).split())}"
            return
        self._jobs[step] = job
        record.write(str(job.job_id), [str(job.paths.stdout)])
        yield f"step {step}: job {job.job_id}, log {job.paths.stdout}"

    def _follow(self, step: int) -> Iterator[str]:
        if self._mark(step).read() is not None:
            self._states[step] = "done"
            yield f"step {step}: done, {self._out(step)}"
        elif not self._is_under_way(step):
            log = Path((self._record(step).read() or {"logs": [""]})["logs"][0])
            reason = explain_failure(log)
            # What a recipe says of a checkpoint that is not there is an error of its configuration.
            if "wrong configuration" in reason and not self._has_checkpoint(step):
                self._states[step] = "deleted"
                yield f"step {step}: the checkpoint was deleted before the job started"
            elif self._mark(step).read() is None:  # not one that ended since it was looked for
                self._states[step] = "failed"
                yield f"step {step}: failed: {reason} log: {log}"

    def _is_under_way(self, step: int) -> bool:
        if self.cluster == "local":
            return not self._jobs[step].done()
        record = self._record(step).read()
        return record is not None and job_state(record["job"]) in _UNDER_WAY

    def _out(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _command(self, step: int) -> tuple[str, ...]:
        values = {
            "{out}": str(self._out(step)),
            "{checkpoint}": str(self.run / "checkpoints" / f"step_{step}"),
            "{run}": str(self.run),
            "{step}": str(step),
        }
        command = list(self.arguments)
        for name, value in values.items():
            command = [text.replace(name, value) for text in command]
        return tuple(command)

    def _mark(self, step: int) -> Mark:
        return stage_mark(self.folder, f"step_{step}", self._command(step))

    def _record(self, step: int) -> JobRecord:
        return JobRecord(self.folder, f"step_{step}", [self._command(step)])


def _join(steps: list[int]) -> str:
    return ", ".join(map(str, steps))

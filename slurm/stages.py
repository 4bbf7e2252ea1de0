"""Runs commands on this machine in order of their needs, side by side, and remembers which are done."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from slurm.files import Mark

# What file systems say that have no locks, such as Lustre as many clusters mount it.
_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class StageError(RuntimeError):
    """A stage's command failed; the message names its log."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command."""

    name: str
    """Short name; also the name of the log file and of the mark that the stage is done."""

    title: str
    """What a reader of the terminal sees."""

    arguments: tuple[str, ...]
    """Arguments of this Python interpreter, such as ``("-m", "recipes.probe", ...)``."""

    needs: tuple[str, ...] = ()
    """Names of the stages that must be done before."""

    num_threads: int = 1
    """Threads that the command may use; commands run side by side while they fit the machine's cores."""

    num_processes: int = 1
    """Processes that share the threads."""


def torchrun(num_processes: int) -> tuple[str, ...]:
    """Return the arguments of the Python interpreter before a command that is to have several processes."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}")


def stage_mark(folder: Path, name: str, arguments: Sequence[str]) -> Mark:
    """Return the mark of a stage, ``FOLDER/stages/NAME.done``."""
    return Mark(path=folder / "stages" / f"{name}.done", command="\n".join(arguments))


@dataclass
class _Run:
    stage: Stage
    state: str = "waiting"
    start: float = 0.0
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


class StageRunner:
    """Runs stages, each in a process of its own with its output in ``FOLDER/logs/NAME.log``.

    A finished stage leaves ``FOLDER/stages/NAME.done`` that holds its command: started again, the runner skips it
    unless the command has changed. An interrupted stage is started again and every recipe goes on where it was.

    Args:
        folder: Where logs and marks go.
        num_cores: Threads that may be busy at a time.
    """

    def __init__(self, folder: Path, num_cores: int | None = None) -> None:
        self._log_folder = folder / "logs"
        self._mark_folder = folder / "stages"
        self._num_cores = num_cores or os.cpu_count() or 1
        self._console = Console()

    def run(self, stages: list[Stage]) -> dict[str, float]:
        """Run all stages and return the seconds each took in this or an earlier call.

        When this process is stopped by Ctrl-C or SIGTERM, so are the commands.

        Raises:
            StageError: A command ended with an error, and the others are stopped; or another process runs stages in the
                same folder.
        """
        for folder in (self._log_folder, self._mark_folder):
            folder.mkdir(parents=True, exist_ok=True)
        runs = {stage.name: _Run(stage) for stage in stages}
        with _locked(self._mark_folder.with_suffix(".lock")), _ended_by_sigterm():
            try:
                self._run_all(runs)
            finally:
                for run in runs.values():
                    if run.process is not None:
                        _terminate(run.process)
        return {name: run.seconds for name, run in runs.items()}

    def _run_all(self, runs: dict[str, _Run]) -> None:
        with Live(
            console=self._console,
            refresh_per_second=2,
            redirect_stdout=False,
            get_renderable=lambda: self._table(runs),
        ):
            while any(run.state != "done" for run in runs.values()):
                self._collect(runs)
                self._start_ready(runs)
                time.sleep(0.2)
        if not self._console.is_terminal:
            print(flush=True)  # behind the table, which a log has once

    def log_path(self, stage: Stage) -> Path:
        """Return the file of a stage's output."""
        return self._log_folder / f"{stage.name}.log"

    def mark(self, stage: Stage) -> Mark:
        """Return the file that says whether a stage is finished."""
        return stage_mark(self._mark_folder.parent, stage.name, stage.arguments)

    def _start_ready(self, runs: dict[str, _Run]) -> None:
        busy = sum(run.stage.num_threads for run in runs.values() if run.state == "running")
        for run in runs.values():
            stage = run.stage
            if run.state != "waiting" or any(runs[name].state != "done" for name in stage.needs):
                continue
            if (seconds := self.mark(stage).read()) is not None and all(
                runs[name].start == 0.0 for name in stage.needs
            ):
                run.state, run.seconds = "done", seconds
            elif busy == 0 or busy + stage.num_threads <= self._num_cores:
                busy += stage.num_threads
                self._start(run)

    def _start(self, run: _Run) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(max(1, run.stage.num_threads // run.stage.num_processes)),
            "PYTHONUNBUFFERED": "1",
            "FAIRSEQ2_EXTENSION_TRACE": "1",
        }
        with self.log_path(run.stage).open("ab") as log:
            run.process = subprocess.Popen(
                [sys.executable, *run.stage.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that its own workers end with it
            )
        run.state, run.start = "running", time.monotonic()
        self._announce(f"{run.stage.title}: started, see {self.log_path(run.stage)}")

    def _collect(self, runs: dict[str, _Run]) -> None:
        for run in runs.values():
            if run.process is None:
                continue
            run.seconds = time.monotonic() - run.start
            status = run.process.poll()
            if status is None:
                continue
            run.process = None
            if status != 0:
                run.state = "failed"
                raise StageError(
                    f"'{run.stage.title}' ended with exit code {status}; its log is {self.log_path(run.stage)}:\n"
                    + _explain_failure(self.log_path(run.stage))
                )
            self.mark(run.stage).write(run.seconds)
            run.state = "done"
            self._announce(f"{run.stage.title}: done, {run.seconds:.0f} s")

    def _announce(self, text: str) -> None:
        """Write a line where no table can be drawn anew, such as in the log of a job."""
        if not self._console.is_terminal:
            print(text, flush=True)

    def _table(self, runs: dict[str, _Run]) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("stage", "state", "time", "last line of its log"):
            table.add_column(heading, overflow="ellipsis", no_wrap=True)
        for run in self._shown(list(runs.values())):
            line = last_lines(self.log_path(run.stage), 1) if run.state == "running" else ""
            time_spent = f"{run.seconds:.0f} s" if run.seconds else ""
            table.add_row(run.stage.title, run.state, time_spent, line)
        if len(table.rows) < len(runs):
            table.caption = f"{sum(run.state == 'done' for run in runs.values())} of {len(runs)} stages done"
        return table

    def _shown(self, runs: list[_Run]) -> list[_Run]:
        """Return the runs that fit the terminal: all, or those that run, and then what waits in its order."""
        num_rows = max(1, self._console.height - 3)
        if len(runs) <= num_rows:
            return runs
        order = {"failed": 0, "running": 1, "waiting": 2, "done": 3}
        return sorted(runs, key=lambda run: order[run.state])[:num_rows]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"another process runs stages in {path.parent}; stop it first.") from None
        except OSError as ex:
            if ex.errno not in _NO_LOCKS:
                raise
        yield


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what is to be done at the end is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signal_number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signal_number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _explain_failure(path: Path) -> str:
    """Return the last error that the command itself reported; torchrun writes a page of its own below it."""
    lines = _read_end(path)
    errors = [line for line in lines if " ERROR: " in line or line.startswith("error: ")]
    return errors[-1] if errors else "\n".join(lines[-12:])


def last_lines(path: Path, num_lines: int) -> str:
    """Return the last lines of a log that are not empty."""
    return "\n".join(_read_end(path)[-num_lines:])


def _read_end(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 16384))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]

"""What recipes that are no training runs share: tasks that stop when asked to, their pace, the limit to one process."""

from __future__ import annotations

import time
from typing import final

from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task, TaskStopException
from typing_extensions import override

from spear_plugin.data.manifest import Seconds


class StoppableTask(Task):
    """A task that ends at its next :meth:`check_stop` once fairseq2 asked it to stop, e.g. upon a signal."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._step_nr = 0

    def check_stop(self) -> None:
        """Raise :class:`TaskStopException` if the task was asked to stop."""
        if self.stop_requested:
            raise TaskStopException

    def count_step(self) -> None:
        """Count a finished part of the work."""
        self._step_nr += 1

    @override
    def request_stop(self) -> None:
        self.stop_requested = True

    @property
    @override
    def step_nr(self) -> int:
        return self._step_nr

    @override
    def close(self) -> None:
        pass


@final
class WorkClock:
    """Tells how fast audio is worked off."""

    def __init__(self, total: Seconds) -> None:
        """Start the clock; ``total`` is the audio to do."""
        self._start = time.perf_counter()
        self._total = total
        self._done: Seconds = 0.0

    def advance(self, seconds: Seconds) -> str:
        """Count finished audio; return the rate and the time that the rest will take."""
        self._done += seconds
        rate = self._done / (time.perf_counter() - self._start)
        return f"{rate:.1f} times real time, {(self._total - self._done) / rate:.0f} s to go"

    def summary(self) -> str:
        """Return what this process has done so far, and how fast."""
        elapsed = time.perf_counter() - self._start
        return f"Worked off {self._done:.1f} s of audio in {elapsed:.1f} s: {self._done / elapsed:.1f} times real time."


def refuse_several_processes(context: RecipeContext, module: str) -> None:
    """Raise :class:`RecipeError` if the recipe of a module was started by more than one process."""
    if (size := context.gangs.root.size) > 1:
        raise RecipeError(f"`{module}` must be run by one process, but is run by {size}.")

"""Recipes that were asked to stop say so by their exit code: whoever started them knows that there is more to do."""

from __future__ import annotations

from typing import Final, final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task, TaskStopException
from torch.nn import Module
from typing_extensions import override

STOPPED_EXIT_CODE: Final = 75
"""Stopped before the end because of a signal (SIGUSR1): the same command goes on. EX_TEMPFAIL of sysexits.h."""


@final
class StopWatchingRecipe(Recipe):
    """A recipe that remembers whether its task stopped because it was asked to; fairseq2 ends with 0 in any case.

    Args:
        recipe: The recipe that does the work.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._task: _StopWatchingTask | None = None

    @property
    def was_stopped(self) -> bool:
        """Whether the task ended before it was done."""
        return self._task is not None and self._task.was_stopped

    @override
    def register(self, container: DependencyContainer) -> None:
        self._recipe.register(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        self._task = _StopWatchingTask(self._recipe.create_task(context))
        return self._task

    @override
    def setup_model(self, context: RecipeContext, model: Module, newly_initialized: bool) -> Module:
        return self._recipe.setup_model(context, model, newly_initialized)

    @override
    def setup_reference_model(self, context: RecipeContext, model: Module, section_name: str) -> Module:
        return self._recipe.setup_reference_model(context, model, section_name)

    @property
    @override
    def config_kls(self) -> type[object]:
        return self._recipe.config_kls

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        return self._recipe.has_static_autograd_graph(context)


@final
class _StopWatchingTask(Task):
    def __init__(self, task: Task) -> None:
        self._task = task
        self._stop_requested = False
        self.was_stopped = False

    @override
    def run(self) -> None:
        try:
            self._task.run()
        except TaskStopException:
            # Without a request, the task ended early by its own decision, and is done.
            self.was_stopped = self._stop_requested
            raise

    @override
    def request_stop(self) -> None:
        self._stop_requested = True
        self._task.request_stop()

    @property
    @override
    def step_nr(self) -> int:
        return self._task.step_nr

    @override
    def close(self) -> None:
        self._task.close()

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.task import Task
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from recipes.models import default_model_name, write_spear_card
from recipes.spear.average.config import SpearAverageConfig
from recipes.spear.average.sources import Run, Source, find_sources
from recipes.tasks import StoppableTask, refuse_several_processes
from spear_plugin.models.spear import SPEAR_FAMILY, SpearConfig
from spear_plugin.optim.averaging import AveragingError, RunningAverage, WeightMean, merge_average


@final
class SpearAverageRecipe(Recipe):
    """Averages checkpoints into a model."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.spear.average")
        return SpearAverageTask(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return SpearAverageConfig


@final
class SpearAverageTask(StoppableTask):
    """Reads models one after the other, writes their mean to ``OUT/checkpoints``."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(SpearAverageConfig)
        self._folder = context.output_dir
        self._progress_reporter = context.progress_reporter

    @override
    def run(self) -> None:
        folder = self._folder / "checkpoints"
        if folder.exists():
            raise RecipeError(f"{folder} exists already: OUT must be a new folder.")
        try:
            with self._progress_reporter:
                last, state, summary = self._average()
        except AveragingError as ex:
            raise RecipeError(str(ex)) from None
        name = self._config.name or default_model_name(self._folder)
        write_result(folder, name, last.load_config(), last.step_nr, state, summary)
        log.info("{} in {}: {}.", name, folder, summary)

    def _average(self) -> tuple[Source, dict[str, Tensor], str]:
        """Return the last model, whose configuration and step number the mean takes over, the mean, and what it is."""
        config = self._config
        if config.mode == "running" and config.run is not None:
            run = Run(config.run)
            return self._average_snapshots(run, *run.select_span(config.last_n, config.steps))
        sources = find_sources(config)
        mean = WeightMean()
        with self._progress_reporter.create_task("average (models)", total=len(sources)) as progress:
            for source in sources:
                mean.add(source.load_state(), source.name)
                log.info("{} added.", source.name)
                self._advance()
                progress.step()
        return sources[-1], mean.result(), f"mean of {', '.join(source.name for source in sources)}"

    def _average_snapshots(self, run: Run, start: int, end: int) -> tuple[Source, dict[str, Tensor], str]:
        with self._progress_reporter.create_task("average (files)", total=3) as progress:
            later = run.load_running_average(end)
            self._advance()
            progress.step()
            period = later.every_n_steps
            # Before the first snapshot there is nothing to subtract, and possibly no checkpoint.
            earlier = RunningAverage(period) if start < period else run.load_running_average(start)
            self._advance()
            progress.step()
            source = run.get(end)
            state = merge_average(later.since(earlier), source.load_state())
            self._advance()
            progress.step()
        number = later.num_snapshots - earlier.num_snapshots
        return (
            source,
            state,
            f"mean of {number} snapshots, every {period} steps after {start} to {end}, of {run.folder}",
        )

    def _advance(self) -> None:
        self.count_step()
        self.check_stop()


def write_result(
    folder: Path, name: str, config: SpearConfig, step_nr: int, state: Mapping[str, Tensor], summary: str
) -> None:
    """Write a folder of checkpoints as a run has it, with one step; it gets its name when all is in it.

    Args:
        folder: The folder, which must not exist.
        name: Name of the card beside the weights.
        config: The model's configuration.
        step_nr: The step.
        state: The model's tensors.
        summary: What the model is, kept in the card.
    """
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model = unfinished / f"step_{step_nr}" / "model"
    model.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, model / "model.safetensors")
    get_dependency_resolver().resolve(ModelMetadataDumper).dump(unfinished, SPEAR_FAMILY, config)  # type: ignore[type-abstract]
    write_spear_card(model / "card.yaml", name, config, "model.safetensors", {"average": summary})
    unfinished.replace(folder)

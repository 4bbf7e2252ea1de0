from __future__ import annotations

import time
from hashlib import sha256
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from fairseq2.utils.rich import get_console
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FeatureSource
from recipes.features import open_source
from recipes.models import RunStep
from recipes.probe.config import ProbeConfig, SourceSection, complete_sources
from recipes.probe.extraction import extract_features
from recipes.probe.fitting import fit_best_layer, fit_weighted_layers, pooled_majority_accuracy
from recipes.probe.report import print_report, write_report
from recipes.probe.results import Difference, ProbeResult, ResultStore, compare
from recipes.probe.tasks import ProbeTask, read_task
from recipes.publishing import publish
from recipes.tasks import StoppableTask, refuse_several_processes


@final
class ProbeRecipe(Recipe):
    """Probes every source of features on every task."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.probe")

        return ProbeRun(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return ProbeConfig


@final
class ProbeRun(StoppableTask):
    """Goes through the sources; what is finished stays in ``OUT/results``."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(ProbeConfig)
        self._folder = context.output_dir
        self._device = context.device
        self._progress_reporter = context.progress_reporter
        self._store = ResultStore(self._folder / "results")

        self._checkpoints: dict[str, RunStep] = {}

    @override
    def run(self) -> None:
        with self._progress_reporter:
            section, seed = self._config.probe, self._config.common.seed

            tasks = [read_task(path, section, seed=seed) for path in self._config.tasks]

            for task in tasks:
                log.info(
                    "Task {}: {:,} items of {} classes in {} files, {:,} of them for testing.",
                    task.name,
                    task.labels.numel(),
                    len(task.classes),
                    len(task.clips),
                    task.test.numel(),
                )

            sources = self._config.features

            results = [
                result
                for source_section in (complete_sources(sources) if self._config.baselines else sources)
                for result in self._probe_source(source_section, tasks)
            ]

            differences: list[Difference] = []

            for task in tasks:
                differences += compare(task, results, num_resamples=section.num_resamples, seed=seed)

        write_report(self._folder, results, differences)

        self._publish(results)

        print_report(get_console(), results, differences)

    def _probe_source(self, section: SourceSection, tasks: list[ProbeTask]) -> list[ProbeResult]:
        """Return the results of a source on all tasks, those already stored first."""
        source = open_source(section, device=self._device, seed=self._config.common.seed)

        self._note_checkpoint(section, source)

        identities = {task.name: _identity(task, source, section) for task in tasks}

        results = {task.name: self._store.find(task.name, section.name, identities[task.name]) for task in tasks}

        pending = [task for task in tasks if results[task.name] is None]

        if skipped := len(tasks) - len(pending):
            log.info("Source {}: {} finished task(s) kept.", section.name, skipped)

        if pending:
            features, seconds = self._extract(section, source, pending)

            for task in pending:
                result = self._fit(section, task, features.pop(0), identities[task.name], seconds)

                self._store.save(result)

                results[task.name] = result

        return [result for result in results.values() if result is not None]

    def _note_checkpoint(self, section: SourceSection, source: FeatureSource) -> None:
        """Remember which checkpoint of a run a model is, if it is one."""
        if source.checkpoint is not None:
            self._checkpoints[section.name] = source.checkpoint
        elif section.kind == "model" and self._config.publish is not None:
            raise RecipeError(
                f"{section.checkpoint_key}: must be a checkpoint of a run when `publish` is set, but "
                f"'{section.checkpoint}' is none."
            )

    def _publish(self, results: list[ProbeResult]) -> None:
        """Add to each run the accuracies of its checkpoint, and of the sources that are of no run."""
        if (category := self._config.publish) is None:
            return

        for checkpoint in set(self._checkpoints.values()):
            values = {
                f"{result.task}/{result.source}": result.accuracy
                for result in results
                if self._checkpoints.get(result.source, checkpoint) == checkpoint
            }

            publish(checkpoint, category, values)

            log.info("Published to {} at step {}, as {}.", checkpoint.folder, checkpoint.step_nr, category)

    def _extract(
        self, section: SourceSection, source: FeatureSource, tasks: list[ProbeTask]
    ) -> tuple[list[Tensor], float]:
        start = time.perf_counter()

        num_files = len({clip.path for task in tasks for clip in task.clips})

        with self._progress_reporter.create_task(f"{section.name}: extract (files)", total=num_files) as progress:

            def report(num_files: int) -> None:
                progress.step(num_files)

                self.check_stop()

            features = extract_features(
                source,
                tasks,
                time_shifts=self._config.probe.time_shifts,
                max_batch_seconds=self._config.probe.max_batch_seconds,
                device=self._device,
                report=report,
            )

        return features, time.perf_counter() - start

    def _fit(
        self, section: SourceSection, task: ProbeTask, features: Tensor, identity: str, extraction_seconds: float
    ) -> ProbeResult:
        start = time.perf_counter()

        fit_layers = fit_weighted_layers if section.layers == "weighted" else fit_best_layer

        num_fits = 1 if section.layers == "weighted" else features.size(1)

        with self._progress_reporter.create_task(
            f"{section.name}: probe {task.name} (layers)", total=num_fits
        ) as progress:

            def report() -> None:
                progress.step()

                self.check_stop()

            fit = fit_layers(features, task, self._config.probe, seed=self._config.common.seed, report=report)

        self.count_step()

        fit_seconds = time.perf_counter() - start

        log.info(
            "{} on {}: accuracy {:.3f}, layer {}, {:.1f} s.",
            section.name,
            task.name,
            fit.accuracy,
            fit.layer,
            fit_seconds,
        )

        return ProbeResult(
            identity=identity,
            task=task.name,
            source=section.name,
            kind=section.kind,
            mode=section.layers,
            majority=pooled_majority_accuracy(task),
            num_classes=len(task.classes),
            num_fitted=task.splits[0].fitted.numel(),
            num_test=task.test.numel(),
            num_files=len(task.clips),
            extraction_seconds=extraction_seconds,
            fit_seconds=fit_seconds,
            **vars(fit),
        )


def _identity(task: ProbeTask, source: FeatureSource, section: SourceSection) -> str:
    return sha256(f"{task.digest} {source.identity} {source.timing} {section.layers}".encode()).hexdigest()[:16]

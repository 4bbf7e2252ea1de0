from __future__ import annotations

import time
from hashlib import sha256
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from fairseq2.utils.rich import get_console
from typing_extensions import override

from recipes.feature_sources import FeatureSource
from recipes.features import open_source
from recipes.models import RunStep
from recipes.probe.config import ProbeConfig, SourceSection, complete_sources
from recipes.probe.extraction import extract_features
from recipes.probe.kinds import open_task
from recipes.probe.report import print_report, write_report
from recipes.probe.results import Difference, ProbeResult, ResultStore, compare
from recipes.probe.tasks import Features, ProbeTask
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
        # Heads are trained on what is extracted here, and autograd refuses tensors of inference mode.
        with self._progress_reporter, torch.inference_mode(mode=False), torch.no_grad():
            section, seed = self._config.probe, self._config.common.seed

            tasks = [open_task(reference, section, seed=seed) for reference in self._config.task_references]

            for task in tasks:
                log.info(
                    "Task {} ({}): {:,} items of {} classes in {} files, {:,} of them for testing.",
                    task.name,
                    task.kind,
                    len(task.items.items),
                    len(task.items.classes),
                    len(task.items.clips),
                    task.items.num_test,
                )

            sources = self._config.features

            results = [
                result
                for source_section in (complete_sources(sources) if self._config.baselines else sources)
                for result in self._probe_source(source_section, tasks)
            ]

            differences: list[Difference] = []

            for task in tasks:
                differences += compare(task.name, results, num_resamples=section.num_resamples, seed=seed)

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
        """Add to each run the values of its checkpoint, and of the sources that are of no run."""
        if (category := self._config.publish) is None:
            return

        for checkpoint in set(self._checkpoints.values()):
            values = {
                f"{result.task}/{result.source}": result.value
                for result in results
                if self._checkpoints.get(result.source, checkpoint) == checkpoint
            }

            publish(checkpoint, category, values)

            log.info("Published to {} at step {}, as {}.", checkpoint.folder, checkpoint.step_nr, category)

    def _extract(
        self, section: SourceSection, source: FeatureSource, tasks: list[ProbeTask]
    ) -> tuple[list[Features], float]:
        start = time.perf_counter()

        num_files = len({clip.path for task in tasks for clip in task.items.clips})

        with self._progress_reporter.create_task(f"{section.name}: extract (files)", total=num_files) as progress:

            def report(num_files: int) -> None:
                progress.step(num_files)

                self.check_stop()

            features = extract_features(
                source,
                tasks,
                max_batch_seconds=self._config.probe.max_batch_seconds,
                device=self._device,
                report=report,
            )

        return features, time.perf_counter() - start

    def _fit(
        self, section: SourceSection, task: ProbeTask, features: Features, identity: str, extraction_seconds: float
    ) -> ProbeResult:
        start = time.perf_counter()

        mode = section.layers if task.chooses_layers else "weighted"

        num_layers = features.size(1) if isinstance(features, torch.Tensor) else features[0].size(0)

        with self._progress_reporter.create_task(
            f"{section.name}: probe {task.name}", total=task.num_reports(num_layers, mode)
        ) as progress:

            def report() -> None:
                progress.step()

                self.check_stop()

            fit = task.fit(features, mode, report=report)

        self.count_step()

        fit_seconds = time.perf_counter() - start

        interval = task.interval(fit.statistic)

        log.info(
            "{} on {}: {} {:.3f}, layer {}, {:.1f} s.",
            section.name,
            task.name,
            task.metric.replace("_", " "),
            interval.value,
            fit.layer,
            fit_seconds,
        )

        return ProbeResult(
            identity=identity,
            task=task.name,
            source=section.name,
            kind=section.kind,
            task_kind=task.kind,
            metric=task.metric,
            is_error=task.is_error,
            mode=mode,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            majority=task.chance,
            num_classes=len(task.items.classes),
            num_fitted=task.items.splits[0].fitted.numel(),
            num_test=task.items.num_test,
            num_files=len(task.items.clips),
            extraction_seconds=extraction_seconds,
            fit_seconds=fit_seconds,
            **vars(fit),
        )


def _identity(task: ProbeTask, source: FeatureSource, section: SourceSection) -> str:
    parts = f"{task.kind} {task.items.digest} {source.identity} {source.timing} {section.layers}"

    return sha256(parts.encode()).hexdigest()[:16]

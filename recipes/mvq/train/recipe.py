from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from torch import Tensor
from typing_extensions import override

from recipes.mvq.train.checkpoint import QuantizerCheckpoint, ResumableTrainer, StepWatch
from recipes.mvq.train.config import MvqTrainConfig
from recipes.mvq.train.frames import collect_frames, count_available_frames
from recipes.mvq.train.heads import copy_head, find_head
from recipes.mvq.train.report import write_report
from recipes.mvq.train.storage import FrameBlocks, read_frames, write_frames
from recipes.tasks import StoppableTask, refuse_several_processes
from spear_plugin.data.manifest import manifest_digest, read_manifest
from spear_plugin.quantizers import (
    ClassifierQuantizerConfig,
    FrameQuantizer,
    KMeansQuantizer,
    KMeansQuantizerConfig,
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerConfig,
    QuantizerProgress,
    QuantizerTrainer,
    RandomProjectionQuantizer,
    RandomProjectionQuantizerConfig,
    compute_statistics,
    create_random_projection_quantizer,
    save_quantizer_asset,
)
from spear_plugin.quantizers.kmeans_training import KMeansTrainer
from spear_plugin.teachers import Teacher, load_teacher

# Held out for the report: this part, but no more than so many frames (SPEAR).
VALID_PART = 0.05
MAX_VALID_FRAMES = 10_000


@final
class MvqTrainRecipe(Recipe):
    """Trains a quantizer on the frames of a teacher.

    The configuration has no ``model`` section: a quantizer is no model of fairseq2's trainer (two phases with an
    optimizer each, minutes of one device). To fairseq2 this is therefore an inference recipe.
    """

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.mvq.train")

        return MvqTrainTask(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return MvqTrainConfig


@final
class MvqTrainTask(StoppableTask):
    """Collects frames, trains the quantizers, writes asset and report; each part is done once in an output folder."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(MvqTrainConfig)
        self._folder = context.output_dir
        self._device = context.device
        self._progress_reporter = context.progress_reporter
        self._metric_recorder = context.metric_recorder

    @override
    @torch.inference_mode(mode=False)
    def run(self) -> None:
        with self._progress_reporter:
            teacher = load_teacher(self._config.teacher, device=self._device)
            provenance = self._describe_frames(teacher)
            config = self._create_quantizer_config(teacher)
            frames = self._prepare_frames(teacher, provenance)
            num_valid = max(1, min(int(VALID_PART * len(frames)), MAX_VALID_FRAMES))
            train, valid = frames[:-num_valid], frames[-num_valid:]

            section = self._config.quantizer
            others = {
                n: self._train(self._create_quantizer_config(teacher, n), teacher, train, provenance)
                for n in section.compare_num_codebooks
            }
            quantizer = self._train(config, teacher, train, provenance)

            name = section.name or re.sub(r"\W+", "_", f"{section.kind}_{teacher.name}")
            save_quantizer_asset(self._folder / "quantizer", quantizer, config, name)
            report = write_report(self._folder / "report.json", quantizer, valid, others, provenance=provenance)
            log.info(
                "Quantizer {} in {}: relative error {:.4f} on {:,} held-out frames.",
                name,
                self._folder / "quantizer",
                report["relative_error"],
                num_valid,
            )

    def _describe_frames(self, teacher: Teacher) -> dict[str, object]:
        corpus = self._config.corpus

        return {
            "teacher": teacher.name,
            "manifest": manifest_digest(corpus.manifest_path),
            "max_frames": corpus.limit_frames(teacher.dim),
            "max_frames_per_file": corpus.max_frames_per_file,
            "seed": self._config.common.seed,
        }

    def _prepare_frames(self, teacher: Teacher, provenance: dict[str, object]) -> Tensor:
        """Return frames (B, D) float16, collected now or by an earlier start."""
        path = self._folder / "frames.safetensors"
        blocks = FrameBlocks(self._folder / "frames", provenance)
        frames = read_frames(path, provenance)
        if frames is not None:
            blocks.delete()  # of a run that was killed before it could
            log.info("{:,} frames were collected before.", len(frames))
            return frames

        start = time.perf_counter()
        corpus = self._config.corpus
        rows = read_manifest(corpus.manifest_path)
        total = min(count_available_frames(teacher, rows, corpus), corpus.limit_frames(teacher.dim))
        with self._progress_reporter.create_task("collect (frames)", total=total) as progress:

            def report(num_frames: int) -> None:
                progress.step(num_frames)
                self.check_stop()

            frames = collect_frames(
                teacher, rows, corpus,
                seed=self._config.common.seed, device=self._device, folder=self._folder, blocks=blocks,
                report=report,
            )  # fmt: skip

        write_frames(path, frames, provenance)
        blocks.delete()
        log.info("{:,} frames of {} collected in {:.0f} s.", len(frames), teacher.name, time.perf_counter() - start)

        return frames

    def _train(
        self, config: QuantizerConfig, teacher: Teacher, frames: Tensor, provenance: dict[str, object]
    ) -> FrameQuantizer:
        match config:
            case MvqQuantizerConfig():
                quantizer: FrameQuantizer = self._train_mvq(config, frames, provenance)
            case KMeansQuantizerConfig():
                quantizer = self._train_kmeans(config, frames, provenance)
            case RandomProjectionQuantizerConfig():
                quantizer = self._fit_random_projection(config, frames)
            case ClassifierQuantizerConfig():
                quantizer = copy_head(find_head(teacher, self._config.quantizer.head), config, frames)
            case _:
                raise AssertionError(f"unknown kind of quantizer: {config}")

        return quantizer.eval().requires_grad_(False)

    def _train_mvq(
        self, config: MvqQuantizerConfig, frames: Tensor, provenance: dict[str, object]
    ) -> MultiCodebookQuantizer:
        num_codebooks = config.num_codebooks
        trainer = QuantizerTrainer(frames, config, self._config.training, device=self._device)
        checkpoint = self._open_checkpoint(f"codebooks_{num_codebooks}", config, self._config.training, provenance)
        checkpoint.load(trainer)

        watch = StepWatch(trainer.num_steps_done, trainer.num_steps)
        category = f"train/codebooks_{num_codebooks}"
        with self._progress_reporter.create_task(
            f"train {num_codebooks} codebooks (steps)", total=trainer.num_steps, completed=trainer.num_steps_done
        ) as progress:

            def after_step(state: QuantizerProgress) -> None:
                progress.step()
                self.count_step()
                step, is_last = state.num_steps_done, state.num_steps_done == state.num_steps
                if step % self._config.publish_metrics_every_n_steps == 0 or is_last:
                    self._metric_recorder.record_metric_values(category, _describe_step(state) | watch.lap(step), step)
                self._keep(checkpoint, trainer, step)

            trainer.run(after_step)

        return trainer.quantizer

    def _train_kmeans(
        self, config: KMeansQuantizerConfig, frames: Tensor, provenance: dict[str, object]
    ) -> KMeansQuantizer:
        if len(frames) < config.codebook_size:
            raise RecipeError(
                f"{self._config.corpus.manifest}: gives {len(frames)} frames to train on, fewer than the "
                f"{config.codebook_size} clusters. Raise `corpus.max_frames`, or lower `quantizer.codebook_size`."
            )

        trainer = KMeansTrainer(frames, config, self._config.kmeans)
        checkpoint = self._open_checkpoint("kmeans", config, self._config.kmeans, provenance)
        checkpoint.load(trainer)

        with self._progress_reporter.create_task(
            "train k-means (steps)", total=trainer.num_steps, completed=trainer.num_steps_done
        ) as progress:

            def after_step(step: int) -> None:
                progress.step()
                self.count_step()
                self._keep(checkpoint, trainer, step)

            return trainer.run(after_step).to(self._device)

    def _open_checkpoint(
        self, name: str, config: QuantizerConfig, training: object, provenance: dict[str, object]
    ) -> QuantizerCheckpoint:
        settings = {"quantizer": asdict(config), "training": asdict(training)}  # type: ignore[call-overload]
        flat = {f"{section}.{key}": value for section, values in settings.items() for key, value in values.items()}
        return QuantizerCheckpoint(self._folder / "checkpoints" / f"{name}.pt", provenance | flat)

    def _keep(self, checkpoint: QuantizerCheckpoint, trainer: ResumableTrainer, step: int) -> None:
        """Save a checkpoint where one is due after a step, and end here if the task was asked to stop."""
        is_last = step == trainer.num_steps
        if step % self._config.checkpoint_every_n_steps == 0 or is_last or self.stop_requested:
            checkpoint.save(trainer)
        self.check_stop()

    def _fit_random_projection(
        self, config: RandomProjectionQuantizerConfig, frames: Tensor
    ) -> RandomProjectionQuantizer:
        quantizer = create_random_projection_quantizer(config).to(self._device)
        if config.normalize:
            quantizer.set_statistics(*compute_statistics(frames))
        quantizer.fit_centers(frames)

        return quantizer

    def _create_quantizer_config(self, teacher: Teacher, num_codebooks: int | None = None) -> QuantizerConfig:
        codebook_size = None
        if self._config.quantizer.kind == "heads":
            num_codebooks, codebook_size, _ = find_head(teacher, self._config.quantizer.head).weight.shape

        return self._config.quantizer.create_config(
            dim=teacher.dim,
            teacher=teacher.name,
            frame_rate_hz=teacher.frame_rate_hz,
            seed=self._config.training.seed,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
        )

    @override
    def close(self) -> None:
        self._metric_recorder.close()


def _describe_step(state: QuantizerProgress) -> dict[str, float]:
    losses = state.losses

    return {
        "relative_reconstruction": float(losses.relative_reconstruction),
        "classification": float(losses.classification),
        "entropy": float(losses.entropy),
        "phase": state.phase,
        "lr": state.lr,
    }

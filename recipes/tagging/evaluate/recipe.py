from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from numpy.typing import NDArray
from typing_extensions import override

from recipes.evaluating import EvaluationReader
from recipes.models import find_card, load_model
from recipes.tagging.evaluate.config import TaggingEvaluateConfig
from recipes.tagging.evaluate.results import (
    CLASSES_FILE,
    PREDICTIONS_FILE,
    SCORES_FILE,
    Predictions,
    write_classes,
    write_predictions,
    write_scores,
)
from recipes.tasks import StoppableTask, refuse_several_processes
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.models.downstream import TAGGING_FAMILY, TaggingModel, get_tagging_model_hub


@final
class TaggingEvaluateRecipe(Recipe):
    """Measures the average precision of a tagger."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return TaggingEvaluateConfig

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.tagging.evaluate")
        config = context.get_config_as(TaggingEvaluateConfig)
        assert config.checkpoint is not None  # by the validation of the configuration
        rows = read_manifest(config.corpus.manifest_path)
        card = find_card(config.checkpoint, "`checkpoint`", TAGGING_FAMILY)
        model = load_model(get_tagging_model_hub(), card, config.checkpoint, device=context.device).eval()
        return EvaluationTask(config, rows, model, context)


@final
class EvaluationTask(StoppableTask):
    """Tags batch by batch and writes everything at the end."""

    def __init__(
        self, config: TaggingEvaluateConfig, rows: Sequence[ManifestRow], model: TaggingModel, context: RecipeContext
    ) -> None:
        super().__init__()
        self._config = config
        self._rows = rows
        self._model = model
        self._folder: Path = context.output_dir
        self._reader = EvaluationReader(config.corpus, model.config.encoder, context.device)

    @override
    def run(self) -> None:
        rows = self._reader.select(self._rows, self._find_problem)
        probabilities = self._tag(rows)
        self._reader.finish(self._folder)
        used = [row for row in rows if row.id in probabilities]
        if len(used) < 2:
            raise RecipeError(f"{self._config.corpus.manifest}: must have at least two usable recordings with labels.")
        labels = self._model.config.labels
        predictions = Predictions(
            ids=[row.id for row in used],
            labels=labels,
            targets=np.array([[label in row.labels for label in labels] for row in used]),
            probabilities=np.stack([probabilities[row.id] for row in used]),
        )
        write_predictions(self._folder / PREDICTIONS_FILE, predictions)
        write_classes(self._folder / CLASSES_FILE, predictions)
        score = predictions.score(seed=self._config.common.seed, num_resamples=self._config.num_resamples)
        write_scores(self._folder / SCORES_FILE, score, predictions)
        log.info("Mean average precision: {:.2%} [{:.2%}, {:.2%}]", score.value, score.low, score.high)

    def _find_problem(self, row: ManifestRow) -> str | None:
        if not row.labels:
            return "has no label"
        unknown = [label for label in row.labels if label not in self._model.config.labels]
        return f"has the label '{unknown[0]}', which the model does not know" if unknown else None

    @torch.inference_mode()
    def _tag(self, rows: Sequence[ManifestRow]) -> dict[str, NDArray[np.float64]]:
        """Return the probabilities (C,) for each id; recordings without them are among the reader's failures."""
        probabilities: dict[str, NDArray[np.float64]] = {}
        for batch in self._reader.read(rows):
            self.check_stop()
            scores = self._model(batch.waveforms, batch.lengths).double().sigmoid().cpu().numpy()
            probabilities |= dict(zip(batch.ids, scores, strict=True))
            self.count_step()
        return probabilities

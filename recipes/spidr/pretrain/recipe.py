from __future__ import annotations

from typing import final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.pretraining import ValidUnit
from recipes.spidr.pretrain.config import SpidrPretrainConfig
from recipes.spidr.pretrain.metrics import SpidrMetrics
from recipes.spidr.pretrain.unit import SpidrCriterion, SpidrTrainUnit, TeacherUpdater
from recipes.training import create_training
from spear_plugin.data.options import ReaderOptions
from spear_plugin.models.spidr import SAMPLE_RATE, SpidrConfig, SpidrModel, create_frame_geometry, create_span_masker


@final
class SpidrPretrainRecipe(Recipe):
    """Self-distillation with online codebooks (SpidR, section 3; DinoSR)."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return SpidrPretrainConfig

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        # SpidR's last norm never has a gradient, dropped layers none in a step, the frozen parts none from then on.
        return False

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(SpidrPretrainConfig)
        model = context.get_model_as(SpidrModel)
        _check_min_seconds(config.dataset.min_seconds, model.config)

        metrics = SpidrMetrics(model.config, per_layer=config.metrics.per_layer)
        criterion = SpidrCriterion(context.get_data_parallel_model(), metrics)
        updater = TeacherUpdater(model, context.gangs.dp)
        updater.attach(context.get_optimizer())
        masker = create_span_masker(model.config)

        def set_options(options: ReaderOptions, split: str) -> None:
            options.crop = options.standardize = True
            options.masker = masker

        return create_training(context, config, SpidrTrainUnit(criterion, updater), ValidUnit(criterion), set_options)


def _check_min_seconds(min_seconds: float, config: SpidrConfig) -> None:
    """Raise :class:`RecipeError` if a recording could be too short for a frame."""
    if round(min_seconds * SAMPLE_RATE) < (minimum := create_frame_geometry(config).receptive_field):
        raise RecipeError(
            f"`dataset.min_seconds` must be at least {minimum / SAMPLE_RATE:g}, the length of a frame, but is "
            f"{min_seconds:g}."
        )

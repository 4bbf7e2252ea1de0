"""What every training does once its units are there: readers, a checkpoint of other processes, an end when asked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fairseq2.datasets import DataReader
from fairseq2.evaluator import EvalUnit
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import CommonSection, RegimeSection, TrainerSection
from fairseq2.trainer import TrainUnit

from recipes.elastic import adapt_checkpoint
from recipes.graceful import GracefulTraining
from recipes.pretraining import PretrainDatasetSection, create_reader_options
from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.dataset import SpearDataset
from spear_plugin.data.options import ReaderOptions


class TrainingConfig(Protocol):
    """The sections that all trainings have."""

    @property
    def dataset(self) -> PretrainDatasetSection: ...

    @property
    def trainer(self) -> TrainerSection: ...

    @property
    def regime(self) -> RegimeSection: ...

    @property
    def common(self) -> CommonSection: ...


def create_training(
    context: RecipeContext,
    config: TrainingConfig,
    train_unit: TrainUnit[SpearBatch],
    valid_unit: EvalUnit[SpearBatch],
    set_options: Callable[[ReaderOptions, str], None],
) -> GracefulTraining:
    """Create the readers of a recipe and its trainer, which validates if the configuration says so.

    Args:
        context: The recipe's.
        config: The recipe's.
        train_unit: Does a batch of training.
        valid_unit: Does a batch of validation.
        set_options: Sets what the configuration's ``dataset`` does not say, for the split ``train`` or ``valid``.
    """
    valid_units, valid_readers = [], []
    train_reader = _create_reader(context, config, "train", set_options)
    if config.dataset.has_validation:
        valid_units = [valid_unit]
        valid_readers = [_create_reader(context, config, "valid", set_options)]
    adapt_checkpoint(context, seed=config.common.seed)
    trainer = context.create_trainer(train_unit, train_reader, valid_units, valid_readers)
    return GracefulTraining(trainer, context.get_optimizer(), context.gangs.root, config.regime.num_steps)


def _create_reader(
    context: RecipeContext, config: TrainingConfig, split: str, set_options: Callable[[ReaderOptions, str], None]
) -> DataReader[SpearBatch]:
    options = create_reader_options(
        config.dataset,
        seed=config.common.seed,
        is_training=split == "train",
        num_accumulate=config.trainer.grad_accumulation.num_batches,
    )
    set_options(options, split)
    return context.get_dataset_as(SpearDataset).create_reader(split, context.gangs, options=options)

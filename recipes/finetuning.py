"""What fine-tuning recipes share: the configuration, the model's set-up, training, and the card of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.gang import Gang
from fairseq2.metrics import MetricBag
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import (
    CommonSection,
    GangSection,
    LRSchedulerSection,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
)
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.task import Task
from fairseq2.trainer import TrainUnit
from fairseq2.utils.config import ConfigMerger
from fairseq2.utils.structured import ValueConverter
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from recipes.common import default_common_section
from recipes.encoders import EncoderSection, EncoderSource, find_encoder, load_encoder
from recipes.finetuned import FinetuningTask
from recipes.pretraining import PretrainDatasetSection
from recipes.training import create_training
from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.options import ClassBalance, ReaderOptions
from spear_plugin.models.downstream import DownstreamModel, EncoderConfig, SpearEncoder


@dataclass(kw_only=True)
class FinetuneDatasetSection(PretrainDatasetSection):
    """As of pre-training; no codes are needed, but what the rows are labelled with."""

    min_seconds: float = 0.1
    """Shorter recordings are skipped and counted."""


@dataclass(kw_only=True)
class FinetuneConfig(Validatable):
    """What all fine-tuning runs are configured by."""

    model: ModelSection = field(default_factory=ModelSection)
    """The task's model. ``config_overrides`` may set all but its encoder's kind and its vocabulary, which follow."""

    encoder: EncoderSection = field(default_factory=EncoderSection)

    dataset: FinetuneDatasetSection = field(default_factory=FinetuneDatasetSection)

    gang: GangSection = field(default_factory=GangSection)

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(mixed_precision=MixedPrecisionConfig(mode="off", dtype=torch.bfloat16))
    )

    # Groups in its `config` give the encoder a rate of its own. There is no `config` here: it would be merged into that
    # of another optimizer or schedule named in a file.
    optimizer: OptimizerSection = field(default_factory=lambda: OptimizerSection(config=None))

    lr_scheduler: LRSchedulerSection = field(default_factory=lambda: LRSchedulerSection(config=None))

    regime: RegimeSection = field(default_factory=lambda: RegimeSection(num_steps=10_000))

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.trainer.data_parallelism != "ddp":
            result.add_error("`trainer.data_parallelism` must be ddp: encoders that can be sharded are the exception.")
        return result


class Criterion(Protocol):
    """Runs a model on a batch of training and feeds the metrics."""

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        """Declare the metrics."""

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, int]:
        """Return the loss, a sum, and the number of targets it is a sum over."""


class DownstreamTask(ABC):
    """What one task adds to fine-tuning.

    Args:
        family: The family of its model.
        head: The keys of the model's configuration that follow from the task, such as the vocabulary.
        balance: How examples are drawn in training.
        card: Further fields of the card of the finished model.
    """

    def __init__(
        self, *, family: str, head: Mapping[str, object], balance: ClassBalance | None, card: Mapping[str, object]
    ) -> None:
        self.family = family
        self.head = head
        self.balance = balance
        self.card = card

    @abstractmethod
    def check_row(self, row: ManifestRow, encoder: EncoderConfig) -> str | None:
        """Return why a row cannot be used, or None."""

    @abstractmethod
    def create_criterion(self, model: Module, encoder: EncoderConfig) -> Criterion:
        """Return what training does with a batch; ``model`` is the data-parallel wrapper."""

    @abstractmethod
    def create_valid_unit(self, model: Module, encoder: EncoderConfig) -> EvalUnit[SpearBatch]:
        """Return what validation does with a batch; ``model`` is the data-parallel wrapper."""


class FinetuneRecipe(Recipe, ABC):
    """Trains an encoder and a head on a task, which a subclass opens."""

    @abstractmethod
    def open_task(self, context: RecipeContext) -> DownstreamTask:
        """Return the task that the configuration describes."""

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        # A frozen encoder, and layers that are dropped, have no gradients in a step.
        return False

    @override
    def setup_model(self, context: RecipeContext, model: Module, newly_initialized: bool) -> Module:
        assert isinstance(model, DownstreamModel)
        # Other processes have a model without memory, and get this one's weights.
        if newly_initialized and not any(parameter.is_meta for parameter in model.parameters()):
            load_encoder(find_encoder(context.get_config_as(FinetuneConfig).encoder), model.encoder)
        return model

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(FinetuneConfig)
        source = find_encoder(config.encoder)
        task = self.open_task(context)
        _complete_model_section(context, task, source)

        model = context.get_model_as(DownstreamModel)
        dp_model = context.get_data_parallel_model()
        criterion = task.create_criterion(dp_model, source.config)
        unit = FinetuneTrainUnit(criterion, model, context.gangs.dp, config.encoder.frozen_steps)

        def set_options(options: ReaderOptions, split: str) -> None:
            options.row_check = lambda row: task.check_row(row, source.config)
            options.balance = task.balance

        valid_unit = task.create_valid_unit(dp_model, source.config)
        training = create_training(context, config, unit, valid_unit, set_options)
        return FinetuningTask(training, context, task.family, model.config, source.name, task.card)


def _complete_model_section(context: RecipeContext, task: DownstreamTask, source: EncoderSource) -> None:
    """Give the model the encoder's configuration and what follows from the task, below what the user overrides.

    fairseq2 builds the model when it is first asked for, from this section.
    """
    resolver = get_dependency_resolver()
    section = context.resolver.resolve(ModelSection)
    converter = resolver.resolve(ValueConverter)  # type: ignore[type-abstract]
    given = {"encoder": converter.unstructure(source.config), **task.head}
    merger = resolver.resolve(ConfigMerger)  # type: ignore[type-abstract]
    section.config_overrides = merger.merge(given, section.config_overrides or {})


@final
class FinetuneTrainUnit(TrainUnit[SpearBatch]):
    """Trains the head, and from some step on the encoder.

    Args:
        criterion: What is done with a batch.
        model: The model itself, not its wrapper.
        gang: The data parallel processes.
        frozen_steps: Steps in which the encoder stays as it is; None: all.
    """

    def __init__(self, criterion: Criterion, model: DownstreamModel, gang: Gang, frozen_steps: int | None) -> None:
        self._criterion = criterion
        self._model = model
        self._gang = gang
        self._frozen_steps = frozen_steps

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._model.freeze_encoder(self._frozen_steps is None or step_nr <= self._frozen_steps)
        if isinstance(encoder := self._model.encoder, SpearEncoder):
            encoder.model.training_state.share(self._gang)

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        return self._criterion(batch, metric_bag)

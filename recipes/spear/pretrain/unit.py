"""One batch: forward through the data-parallel wrapper, loss and number of target frames for the trainer."""

from __future__ import annotations

import math
from typing import final

from fairseq2.gang import Gang
from fairseq2.metrics import MetricBag
from fairseq2.trainer import TrainUnit
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from recipes.spear.pretrain.metrics import add_metrics, update_metrics
from recipes.spear.pretrain.online import OnlineTargets
from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spear import SpearConfig, SpearModel, SpearOutput, num_output_frames


@final
class SpearCriterion:
    """Runs the model on a batch and feeds the metrics; shared by training and validation.

    Args:
        model: The data-parallel wrapper of a `SpearModel`, or the model itself.
        config: The model's configuration.
        online_targets: Makes the codes that batches lack.
    """

    def __init__(self, model: Module, config: SpearConfig, online_targets: OnlineTargets) -> None:
        self._model = model
        self._config = config
        self._online_targets = online_targets

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        add_metrics(bag, self._config)

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, int]:
        codes = self._online_targets(batch)
        output: SpearOutput = self._model(batch.waveforms, batch.lengths, codes, batch.domains)
        # Counted on the host: reading it from the device would stall the step.
        num_targets = sum(num_output_frames(num_samples, self._config) for num_samples in batch.seq_lens)
        update_metrics(bag, self._config, batch, output, num_targets)
        return output.loss, num_targets


@final
class BatchCounter:
    """Tells a model how far training is, and keeps what its whiteners remember equal on all processes.

    Args:
        model: The model itself, not its wrapper.
        gang: The data parallel processes.
        counts_per_step: How much the batch count grows in a step.
        every_n_steps: The number of steps from one call of the model to the next.
    """

    def __init__(self, model: SpearModel, gang: Gang, *, counts_per_step: float, every_n_steps: int) -> None:
        self._model = model
        self._gang = gang
        self._counts_per_step = counts_per_step
        self._every_n_steps = every_n_steps
        self._count_before: float | None = None

    def set_step_nr(self, step_nr: int) -> None:
        """Begin the step with this number, 1 for the first. A resumed model knows what was set before."""
        num_steps_done = step_nr - 1
        if self._count_before is None:
            self._count_before = self._find_count_before(num_steps_done)
        if num_steps_done % self._every_n_steps == 0:
            self._model.set_batch_count(self._count_before + num_steps_done * self._counts_per_step)
        self._model.training_state.share(self._gang)

    def _find_count_before(self, num_steps_done: int) -> float:
        """Return what to add to the count because steps before a resume had more or less audio than those to come."""
        last_set = (num_steps_done - 1) // self._every_n_steps * self._every_n_steps
        count = self._model.training_state.batch_count.item()
        expected = last_set * self._counts_per_step
        # Rounded to float32 in the checkpoint; what is no more than that must not change a bit.
        if num_steps_done == 0 or count < 0.0 or math.isclose(count, expected, rel_tol=1e-6):
            return 0.0
        return count - expected


@final
class SpearTrainUnit(TrainUnit[SpearBatch]):
    def __init__(self, criterion: SpearCriterion, batch_counter: BatchCounter) -> None:
        self._criterion = criterion
        self._batch_counter = batch_counter

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._batch_counter.set_step_nr(step_nr)

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        return self._criterion(batch, metric_bag)

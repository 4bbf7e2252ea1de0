"""One batch: forward through the data-parallel wrapper; and what follows each step of the optimizer."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.gang import Gang, ReduceOperation
from fairseq2.metrics import MetricBag
from fairseq2.trainer import TrainUnit
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from recipes.spidr.pretrain.metrics import SpidrMetrics
from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spidr import CodebookStatistics, SpidrModel, SpidrOutput


@final
class SpidrCriterion:
    """Runs the model on a batch and feeds the metrics; shared by training and validation.

    Args:
        model: The data-parallel wrapper of a `SpidrModel`, or the model itself.
        metrics: What is measured.
    """

    def __init__(self, model: Module, metrics: SpidrMetrics) -> None:
        self._model = model
        self._metrics = metrics

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        self._metrics.add_to(bag)

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> SpidrOutput:
        # On the host, as the mask is: the model must not wait for the device to know which frames are valid.
        lengths = torch.tensor(batch.seq_lens) if batch.num_elements < batch.waveforms.numel() else None
        output: SpidrOutput = self._model(batch.waveforms, lengths, batch.mask)
        self._metrics.update(bag, batch, output)
        return output


@final
class TeacherUpdater:
    """Moves codebooks and teacher after each step of the optimizer (SpidR, section 3.2).

    Args:
        model: The model itself, not its wrapper.
        gang: The data parallel processes.
    """

    def __init__(self, model: SpidrModel, gang: Gang) -> None:
        self._model = model
        self._gang = gang
        self._step_nr = 0
        self._statistics: CodebookStatistics | None = None

    def attach(self, optimizer: Optimizer) -> None:
        """Follow the steps of an optimizer. Steps that it leaves out, for a gradient that overflows, move nothing."""
        optimizer.register_step_post_hook(lambda *_: self._update())

    def begin_step(self, step_nr: int) -> None:
        """Begin the step with this number, 1 for the first, and freeze what is due, also in a run that goes on."""
        self._model.freeze_if_due(step_nr - 1)
        self._step_nr = step_nr
        self._statistics = None

    def add(self, statistics: CodebookStatistics) -> None:
        """Add the statistics of a batch of the step."""
        if self._statistics is None:
            self._statistics = statistics
        else:
            self._statistics.add_(statistics)

    @torch.no_grad()
    def _update(self) -> None:
        if self._statistics is not None:
            # One collective for the counts and sums of all codebooks.
            self._gang.all_reduce(self._statistics.packed, ReduceOperation.SUM)
            self._model.codebooks.update(self._statistics)
            self._statistics = None
        self._model.update_ema(self._step_nr)


@final
class SpidrTrainUnit(TrainUnit[SpearBatch]):
    def __init__(self, criterion: SpidrCriterion, updater: TeacherUpdater) -> None:
        self._criterion = criterion
        self._updater = updater

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._updater.begin_step(step_nr)

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        output = self._criterion(batch, metric_bag)
        self._updater.add(output.statistics)
        return output.loss, output.num_masked

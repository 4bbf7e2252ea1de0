"""One batch of audio tagging. Letters: N batch, C labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self, final

import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import Mean, MetricBag
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import binary_cross_entropy_with_logits
from torcheval.metrics import Metric
from typing_extensions import override

from recipes.metrics import add_batch_metrics, update_batch_metrics
from recipes.tagging.finetune.mixup import Mixup
from spear_plugin.data.batch import SpearBatch
from spear_plugin.evaluation import mean_average_precision


@final
class TaggingCriterion:
    """Runs a model on a batch; of training with mixup, of validation without.

    Args:
        model: The data-parallel wrapper of a `TaggingModel`, or the model itself.
        labels: The vocabulary.
        mixup: Mixes the batch, or not.
    """

    def __init__(self, model: Module, labels: Sequence[str], mixup: Mixup | None) -> None:
        self._model = model
        self._indices = {label: index for index, label in enumerate(labels)}
        self._mixup = mixup

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        """Declare ``loss``, the cross-entropy in nats of each label of a recording, and how much audio was read."""
        bag.add("loss", Mean())
        add_batch_metrics(bag)

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, int]:
        loss, _, _ = self.run(batch, bag)
        return loss, batch.num_examples

    def run(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum over recordings of the mean loss of a label, logits (N, C) and targets (N, C)."""
        waveforms, seq_lens, targets = batch.waveforms, batch.seq_lens, self._create_targets(batch)
        if self._mixup is not None:
            waveforms, seq_lens, targets = self._mixup(waveforms, seq_lens, targets)
        logits: Tensor = self._model(waveforms, torch.tensor(seq_lens))
        loss = binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(self._indices)
        with torch.inference_mode():
            bag.get("loss", Mean).update(loss.detach() / batch.num_examples, weight=float(batch.num_examples))
        update_batch_metrics(bag, batch)
        return loss, logits, targets

    def _create_targets(self, batch: SpearBatch) -> Tensor:
        """Return (N, C) float32, 1 where a recording has the label."""
        targets = torch.zeros(batch.num_examples, len(self._indices))
        for row, labels in zip(targets, batch.labels, strict=True):
            row[[self._indices[label] for label in labels]] = 1.0
        return targets.to(batch.waveforms.device)


@final
class MeanAveragePrecision(Metric[Tensor]):
    """The mean over labels of the average precision, over all recordings since the last reset, of all processes."""

    scores: Tensor
    targets: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self._add_state("scores", torch.empty(0, num_labels))
        self._add_state("targets", torch.empty(0, num_labels, dtype=torch.bool))

    @override
    @torch.inference_mode()
    def update(self, scores: Tensor, targets: Tensor) -> Self:
        """Add scores (N, C) and whether recordings have the labels (N, C)."""
        self.scores = torch.cat([self.scores, scores.float().to(self.device)])
        self.targets = torch.cat([self.targets, targets.bool().to(self.device)])
        return self

    @override
    @torch.inference_mode()
    def merge_state(self, metrics: Iterable[Self]) -> Self:
        for metric in metrics:
            self.update(metric.scores, metric.targets)
        return self

    @override
    def compute(self) -> Tensor:
        return torch.tensor(mean_average_precision(self.scores.double().cpu().numpy(), self.targets.cpu().numpy()))


@final
class TaggingValidUnit(EvalUnit[SpearBatch]):
    """Measures the loss and ``mean_average_precision``; labels that no recording has are left out of the mean."""

    def __init__(self, criterion: TaggingCriterion, num_labels: int) -> None:
        self._criterion = criterion
        self._num_labels = num_labels

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)
        metric_bag.add("mean_average_precision", MeanAveragePrecision(self._num_labels))

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> None:
        _, logits, targets = self._criterion.run(batch, metric_bag)
        metric_bag.get("mean_average_precision", MeanAveragePrecision).update(logits, targets)

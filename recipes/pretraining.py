"""What pre-training recipes share: the section on corpora and batches, the reader's options from it, and validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import MetricBag
from fairseq2.recipe.config import DatasetSection
from typing_extensions import override

from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.dataset import SPEAR_DATASET
from spear_plugin.data.options import ReaderOptions


@dataclass(kw_only=True)
class PretrainDatasetSection(DatasetSection):
    """Which corpora (``config_overrides``, or a dataset card by ``name``) and how they become batches."""

    family: str | None = SPEAR_DATASET

    max_batch_seconds: float = 300.0
    """Most audio in a batch of one process, padding included, in seconds."""

    min_seconds: float = 0.9
    """Shorter recordings are skipped and counted."""

    max_seconds: float = 30.0
    """Longer recordings are cut."""

    num_buckets: int = 20
    """Number of length classes: more classes, less padding or cropping, less variety in a batch."""

    num_parallel: int = 4
    """Threads that read audio."""

    num_prefetch: int = 4
    """Batches made ahead of the training step."""

    max_skipped: int = 100
    """Unreadable recordings that a process may skip before the run ends with an error."""

    has_validation: bool = True
    """If ``False``, the ``valid`` list of corpora is not read and nothing is validated."""


def create_reader_options(
    section: PretrainDatasetSection, *, seed: int, is_training: bool, num_accumulate: int
) -> ReaderOptions:
    """Return the options that do not depend on the model; ``num_accumulate`` batches make a step of training."""
    return ReaderOptions(
        max_batch_seconds=section.max_batch_seconds,
        min_seconds=section.min_seconds,
        max_seconds=section.max_seconds,
        num_buckets=section.num_buckets,
        shuffle=is_training,
        seed=seed,
        num_accumulate=num_accumulate if is_training else 1,
        num_parallel=section.num_parallel,
        num_prefetch=section.num_prefetch,
        max_skipped=section.max_skipped,
    )


class Criterion(Protocol):
    """Runs a model on batches and feeds metrics."""

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        """Declare the metrics."""

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> object:
        """Run the model on a batch and add what the metrics say of it."""


@final
class ValidUnit(EvalUnit[SpearBatch]):
    """Validates with the criterion of training."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> None:
        self._criterion(batch, metric_bag)

"""What pre-training recipes share: the section on corpora and batches, and the reader's options that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq2.recipe.config import DatasetSection

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

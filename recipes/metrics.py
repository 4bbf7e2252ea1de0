"""Metrics that fairseq2 does not have, and those of any training batch. Letters: K codebooks, V entries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Self, final

import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from torch import Tensor
from torcheval.metrics import Metric
from typing_extensions import override

from spear_plugin.data.batch import SpearBatch
from spear_plugin.evaluation import codebook_perplexity, codebook_usage


class EntryCounts(Metric[Tensor]):
    """Counts, since the last reset and over all processes, of the entries of K codebooks."""

    counts: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, *, dtype: torch.dtype = torch.int64) -> None:
        """Start from zero; ``dtype`` float64 takes counts of that kind too, such as sums of probabilities."""
        super().__init__()
        self._add_state("counts", torch.zeros((num_codebooks, codebook_size), dtype=dtype))

    @override
    @torch.inference_mode()
    def update(self, counts: Tensor) -> Self:
        """Add the counts (K, V) of a batch, without waiting for their device."""
        self.counts += counts.to(self.device)
        return self

    @override
    @torch.inference_mode()
    def merge_state(self, metrics: Iterable[Self]) -> Self:
        for metric in metrics:
            self.counts += metric.counts.to(self.device)
        return self

    @abstractmethod
    def compute(self) -> Tensor:
        """Return what is published."""


@final
class CodebookPerplexity(EntryCounts):
    """Mean over codebooks of the perplexity of their entries: V where all are used alike, 1 where only one is."""

    @override
    @torch.inference_mode()
    def compute(self) -> Tensor:
        return codebook_perplexity(self.counts)


@final
class CodebookUsage(EntryCounts):
    """Share of the entries that occurred."""

    @override
    @torch.inference_mode()
    def compute(self) -> Tensor:
        return codebook_usage(self.counts)


def add_batch_metrics(bag: MetricBag) -> None:
    """Declare what :func:`update_batch_metrics` feeds: how much audio was read, skipped and padded."""
    bag.add("padding", Mean())
    for name in ("num_examples", "num_elements", "total_num_examples", "total_audio_seconds", "total_num_skipped"):
        bag.add(name, Sum())


def update_batch_metrics(bag: MetricBag, batch: SpearBatch) -> None:
    """Add one batch. Nothing here waits for the device."""
    bag.get("padding", Mean).update(1.0 - batch.num_elements / batch.waveforms.numel())
    bag.get("num_examples", Sum).update(batch.num_examples)
    bag.get("num_elements", Sum).update(batch.num_elements)
    bag.get("total_num_examples", Sum).update(batch.num_examples)
    bag.get("total_audio_seconds", Sum).update(batch.seconds)
    bag.get("total_num_skipped", Sum).update(batch.num_skipped + batch.num_skipped_noise)

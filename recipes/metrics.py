"""Metrics that fairseq2 does not have. Letters: K codebooks, V entries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Self, final

import torch
from torch import Tensor
from torcheval.metrics import Metric
from typing_extensions import override

from spear_plugin.evaluation import codebook_perplexity, codebook_usage


class EntryCounts(Metric[Tensor]):
    """Counts, since the last reset and over all processes, of the entries of K codebooks."""

    counts: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self._add_state("counts", torch.zeros((num_codebooks, codebook_size), dtype=torch.int64))

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

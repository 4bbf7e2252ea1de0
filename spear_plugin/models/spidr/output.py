"""What the model returns. Letters: N batch, T frames, M predicted frames, D width, K codebooks, V codes of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spear_plugin.models.spidr.codebook import CodebookStatistics


@dataclass(kw_only=True)
class SpidrOutput:
    """The loss of a batch; all but the loss is without gradient."""

    loss: Tensor
    """() float32, sum over predicted frames of the cross-entropy averaged over the heads."""

    num_masked: int
    """M, the number of predicted frames; the loss of the paper is ``loss / num_masked``, over all processes."""

    labels: Tensor
    """(K, M) int64, the codes that were to be predicted, by the codebooks before their update."""

    probabilities: Tensor
    """(K, V) float32, the sum over frames of the predicted probabilities."""

    statistics: CodebookStatistics
    """What ``model.codebooks.update`` needs after a step; its counts (K, V) are how often each code was a label."""


@dataclass(kw_only=True)
class SpidrFeatures:
    """What downstream tasks use."""

    layers: list[Tensor]
    """(N, T, D) for each layer, the first one first: the output of its feed-forward network."""

    lengths: Tensor
    """(N,) int64, the valid frames; what lies beyond has no meaning."""

"""Parallel classifiers that predict the codes of one teacher from the encoder's frames.

Letters: N batch, T frames, C code frames, D width, K codebooks, V entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cross_entropy, linear
from typing_extensions import override

from spear_plugin.models.spear.alignment import IGNORED_CODE, CodeAlignment


@dataclass(kw_only=True)
class StreamOutput:
    """Statistics of one target stream over a batch, detached and on the device; targets are frames times codebooks.

    The first six hold a sum for each domain, (number of domains,).
    """

    loss: Tensor
    """Sum over utterances and frames of the mean cross-entropy over codebooks, before domain weights."""

    cross_entropy: Tensor
    """Sum over targets of the cross-entropy in nats, without any weight; what is not a number is left out."""

    num_masked: Tensor
    """Number of targets on masked frames."""

    num_unmasked: Tensor
    """Number of targets on unmasked frames."""

    correct_masked: Tensor
    """Number of targets on masked frames that are the likeliest entry."""

    correct_unmasked: Tensor
    """Number of targets on unmasked frames that are the likeliest entry."""

    predicted_counts: Tensor
    """(K, V) int64, how often an entry was the likeliest where there was a target."""

    target_counts: Tensor
    """(K, V) int64, how often an entry was the target."""


class CodebookHead(Module):
    """K linear classifiers over V entries on the same frames (arXiv 2510.25955), computed as one product."""

    weight: Parameter
    bias: Parameter

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        *,
        alignment: CodeAlignment,
        alpha: float,
        domain_weights: Sequence[float],
        init_scale: float = 1.0,
    ) -> None:
        """Create a head.

        Args:
            dim: D.
            num_codebooks: K; a head whose ``alignment`` stacks code frames has as many classifiers for each of them.
            codebook_size: V.
            alignment: How the frames of codes meet those of the encoder.
            alpha: Share of masked frames in the loss: they weigh 2 * ``alpha``, the others 2 * (1 - ``alpha``).
            domain_weights: Weight of an utterance's loss, by the number of its domain.
            init_scale: Factor on the standard deviation ``D ** -0.5`` of new weights.
        """
        super().__init__()
        self.num_codebooks = num_codebooks
        self.alignment = alignment
        self.alpha = alpha
        self.domain_weights = tuple(domain_weights)
        self.init_scale = init_scale
        num_classifiers = num_codebooks * alignment.num_stacked
        self.weight = Parameter(torch.empty((num_classifiers, codebook_size, dim)))
        self.bias = Parameter(torch.empty((num_classifiers, codebook_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=self.init_scale * self.weight.size(2) ** -0.5)
        torch.nn.init.zeros_(self.bias)

    @override
    def forward(
        self, frames: Tensor, codes: Tensor, is_masked: Tensor, is_ignored: Tensor, domains: Tensor
    ) -> tuple[Tensor, StreamOutput]:
        """Compare predictions with codes.

        Args:
            frames: (N, T, D), the encoder's output.
            codes: (N, C, K) integers in [0, V), -100 where there is no target.
            is_masked: (N, T) bool, frames whose input was masked.
            is_ignored: (N, T) bool, frames that are left out of the loss.
            domains: (N,) int64, the number of each utterance's domain.

        Returns:
            The loss of each utterance (N,), summed over frames and weighted by domain, and the statistics.
        """
        targets = self.alignment(codes, frames.size(1))
        targets = targets.masked_fill(is_ignored[:, :, None], IGNORED_CODE)
        logits = self.predict(frames)
        # (N, T, K, V) -> (N * T * K) -> (N, T, K)
        cross_entropies = cross_entropy(
            logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORED_CODE, reduction="none"
        ).view_as(targets)
        frame_weights = torch.where(is_masked, 2 * self.alpha, 2 * (1 - self.alpha))
        # (N, T, K) -> (N)
        losses = (cross_entropies.mean(dim=2) * frame_weights).sum(dim=1)
        # As the authors do. The gradients of such an utterance are not finite either, which loss scaling notices.
        losses = losses.masked_fill(losses.isnan(), 0.0)
        statistics = self._summarize(losses.detach(), cross_entropies.detach(), logits, targets, is_masked, domains)
        return losses * self._weights_of(domains), statistics

    def predict(self, frames: Tensor) -> Tensor:
        """Return float32 logits (N, T, K, V) for ``frames`` (N, T, D)."""
        logits = linear(frames.to(self.weight.dtype), self.weight.flatten(0, 1), self.bias.flatten())
        return logits.float().view(*frames.shape[:2], *self.bias.shape)

    @torch.no_grad()
    def _summarize(
        self,
        losses: Tensor,
        cross_entropies: Tensor,
        logits: Tensor,
        targets: Tensor,
        is_masked: Tensor,
        domains: Tensor,
    ) -> StreamOutput:
        predictions = logits.argmax(dim=3)
        is_target = targets != IGNORED_CODE
        is_correct = is_target & (predictions == targets)
        # (N, T, K) -> (N, T)
        num_targets, num_correct = is_target.sum(dim=2), is_correct.sum(dim=2)

        def add_up(values: Tensor) -> Tensor:
            return _sum_by_domain(values, domains, len(self.domain_weights))

        def count(entries: Tensor) -> Tensor:
            # Stacked frames are of the same codebooks.
            counts = _count_entries(entries, is_target, logits.size(3))
            return counts.view(-1, self.num_codebooks, logits.size(3)).sum(dim=0)

        return StreamOutput(
            loss=add_up(losses),
            cross_entropy=add_up(cross_entropies.nansum(dim=(1, 2))),
            num_masked=add_up((num_targets * is_masked).sum(dim=1)),
            num_unmasked=add_up((num_targets * ~is_masked).sum(dim=1)),
            correct_masked=add_up((num_correct * is_masked).sum(dim=1)),
            correct_unmasked=add_up((num_correct * ~is_masked).sum(dim=1)),
            predicted_counts=count(predictions),
            target_counts=count(targets),
        )

    def _weights_of(self, domains: Tensor) -> Tensor:
        weights = torch.zeros_like(domains, dtype=torch.float32)
        for number, weight in enumerate(self.domain_weights):
            weights = weights.masked_fill(domains == number, weight)
        return weights

    if TYPE_CHECKING:
        __call__ = forward


def _sum_by_domain(values: Tensor, domains: Tensor, num_domains: int) -> Tensor:
    """Return the sums (num_domains,) of one value for each utterance, (N,)."""
    is_domain = domains == torch.arange(num_domains, device=domains.device)[:, None]
    return values.where(is_domain, 0).sum(dim=1)


def _count_entries(entries: Tensor, is_target: Tensor, codebook_size: int) -> Tensor:
    """Return how often (K, V) each entry stands in ``entries`` (N, T, K), where ``is_target``."""
    num_codebooks = entries.size(2)
    # Integers, so that the order of additions on a device makes no difference; ignored entries add 0 to any place.
    indices = entries.clamp(min=0) + codebook_size * torch.arange(num_codebooks, device=entries.device)
    counts = torch.zeros(num_codebooks * codebook_size, dtype=torch.int64, device=entries.device)
    counts.scatter_add_(0, indices.flatten().long(), is_target.flatten().long())
    return counts.view(num_codebooks, codebook_size)

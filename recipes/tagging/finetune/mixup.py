"""Mixup on waveforms (arXiv 1710.09412). Letters: N batch, S samples, C labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.distributions import Beta


@final
@dataclass(frozen=True)
class Mixup:
    """Mixes a batch with itself in another order; drawn from torch's global generator of the CPU."""

    probability: float

    alpha: float

    def __call__(self, waveforms: Tensor, seq_lens: list[int], targets: Tensor) -> tuple[Tensor, list[int], Tensor]:
        """Return the same, mixed or not; one weight a recording.

        Args:
            waveforms: (N, S), zero beyond an utterance's end.
            seq_lens: N lengths in samples; of two recordings the longer one counts.
            targets: (N, C) in [0, 1].
        """
        if torch.rand((), device="cpu").item() >= self.probability:
            return waveforms, seq_lens, targets
        partners = torch.randperm(len(seq_lens), device="cpu").tolist()
        weights = Beta(self.alpha, self.alpha).sample((len(seq_lens), 1)).to(waveforms)
        mixed = weights * waveforms + (1.0 - weights) * waveforms[partners]
        mixed_targets = weights * targets + (1.0 - weights) * targets[partners]
        return mixed, [max(seq_lens[i], seq_lens[j]) for i, j in enumerate(partners)], mixed_targets

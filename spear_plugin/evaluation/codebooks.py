"""How evenly codebooks are used. Letters: K codebooks, V entries."""

from __future__ import annotations

from torch import Tensor


def codebook_perplexity(counts: Tensor) -> Tensor:
    """Return the perplexity () of each codebook's entries, averaged over the codebooks that occur; 0 without any count.

    :param counts: (K, V), how often each entry occurs.
    """
    counts = counts.double()
    totals = counts.sum(dim=1, keepdim=True)
    shares = counts / totals.clamp(min=1)
    # 0 ln 0 is 0
    entropies = -shares.xlogy(shares).sum(dim=1)
    has_counts = totals.squeeze(1) > 0
    return (entropies.exp() * has_counts).sum() / has_counts.sum().clamp(min=1)


def codebook_usage(counts: Tensor) -> Tensor:
    """Return the share () of all entries that occur at least once.

    :param counts: (K, V), how often each entry occurs.
    """
    return (counts > 0).double().mean()

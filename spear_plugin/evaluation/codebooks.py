"""How evenly codebooks are used. Letters: K codebooks, V entries."""

from __future__ import annotations

from torch import Tensor


def codebook_entropies(counts: Tensor) -> Tensor:
    """Return the entropy (K,) of each codebook's entries in nats, float64; 0 without any count.

    :param counts: (K, V), how often each entry occurs.
    """
    counts = counts.double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # 0 ln 0 is 0; the entropy of a single entry would be -0
    return -shares.xlogy(shares).sum(dim=1) + 0.0


def codebook_perplexity(counts: Tensor) -> Tensor:
    """Return the perplexity () of each codebook's entries, averaged over the codebooks that occur; 0 without any count.

    :param counts: (K, V), how often each entry occurs.
    """
    has_counts = counts.sum(dim=1) > 0
    return (codebook_entropies(counts).exp() * has_counts).sum() / has_counts.sum().clamp(min=1)


def codebook_usage(counts: Tensor) -> Tensor:
    """Return the share () of all entries that occur at least once.

    :param counts: (K, V), how often each entry occurs.
    """
    return (counts > 0).double().mean()

from __future__ import annotations

import torch
from fairseq2.device import META_DEVICE
from torch import Tensor

from spear_plugin.quantizers.config import MvqQuantizerConfig
from spear_plugin.quantizers.model import MultiCodebookQuantizer


def create_mvq_quantizer(config: MvqQuantizerConfig) -> MultiCodebookQuantizer:
    """Create a quantizer with initial weights."""
    return MultiCodebookQuantizer(config.dim, config.codebook_size, config.num_codebooks, normalize=config.normalize)


@torch.no_grad()
def create_product_quantizer(quantizer: MultiCodebookQuantizer) -> MultiCodebookQuantizer:
    """Create the quantizer whose codebooks hold all sums of an entry of codebook 2n and one of codebook 2n + 1.

    It has half of the codebooks, whose size is squared, and the same reconstructions: entry k1 * K + k2 of codebook n
    stands for the entries k1 and k2. This begins the second phase of the training.

    :raises ValueError: The number of codebooks is odd, or the squared codebook size exceeds a byte.
    """
    num_pairs, odd = divmod(quantizer.num_codebooks, 2)

    if odd:
        raise ValueError("`quantizer` must have an even number of codebooks, but has 1 instead.")

    size, dim = quantizer.codebook_size, quantizer.dim

    with META_DEVICE:  # draws no random numbers: all weights are replaced
        product = MultiCodebookQuantizer(dim, size**2, num_pairs, normalize=quantizer.normalize)

    def sum_pairs(x: Tensor) -> Tensor:
        x = x.view(num_pairs, 2, size, -1)

        # (n, K, 1, D) + (n, 1, K, D) -> (n, K, K, D)
        return x[:, 0, :, None] + x[:, 1, None, :]

    linear = quantizer.to_logits

    state = quantizer.state_dict()

    state["to_logits.weight"] = sum_pairs(linear.weight).view(-1, dim)
    state["to_logits.bias"] = sum_pairs(linear.bias).flatten()

    state["centers"] = sum_pairs(quantizer.centers).view(num_pairs, -1, dim)

    product.to_empty(device=quantizer.centers.device).load_state_dict(state)

    return product

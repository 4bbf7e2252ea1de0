from __future__ import annotations

import torch
from fairseq2.device import META_DEVICE
from torch import Tensor

from spear_plugin.quantizers.classifier import ClassifierQuantizer
from spear_plugin.quantizers.config import (
    ClassifierQuantizerConfig,
    KMeansQuantizerConfig,
    MvqQuantizerConfig,
    RandomProjectionQuantizerConfig,
)
from spear_plugin.quantizers.kmeans import KMeansQuantizer
from spear_plugin.quantizers.model import MultiCodebookQuantizer
from spear_plugin.quantizers.random_projection import RandomProjectionQuantizer


def create_mvq_quantizer(config: MvqQuantizerConfig) -> MultiCodebookQuantizer:
    """Create a quantizer with random weights."""
    return MultiCodebookQuantizer(config.dim, config.codebook_size, config.num_codebooks, normalize=config.normalize)


def create_kmeans_quantizer(config: KMeansQuantizerConfig) -> KMeansQuantizer:
    """Create a quantizer with random centres."""
    return KMeansQuantizer(config.dim, config.codebook_size, normalize=config.normalize)


def create_random_projection_quantizer(config: RandomProjectionQuantizerConfig) -> RandomProjectionQuantizer:
    """Create the quantizer that the seed of the configuration draws."""
    return RandomProjectionQuantizer(
        config.dim,
        config.codebook_size,
        config.num_codebooks,
        projection_dim=config.projection_dim,
        seed=config.seed,
        normalize=config.normalize,
    )


def create_classifier_quantizer(config: ClassifierQuantizerConfig) -> ClassifierQuantizer:
    """Create a quantizer whose classifiers know nothing yet."""
    return ClassifierQuantizer(config.dim, config.codebook_size, config.num_codebooks)


@torch.no_grad()
def create_product_quantizer(quantizer: MultiCodebookQuantizer) -> MultiCodebookQuantizer:
    """Create the quantizer whose codebook n holds all sums of an entry of codebook 2n and one of codebook 2n + 1.

    Entry k1 * K + k2 stands for entries k1 and k2. Half of the codebooks with the squared size give the same
    reconstructions; the second phase of training starts there.

    Raises:
        ValueError: There is only one codebook, or the squared size does not fit into a byte.
    """
    if quantizer.num_codebooks == 1:
        raise ValueError("`quantizer` must have at least 2 codebooks, but has 1 instead.")
    dim, size, num_pairs = quantizer.dim, quantizer.codebook_size, quantizer.num_codebooks // 2

    def sum_pairs(x: Tensor) -> Tensor:
        # (N * K, D) -> (n, 2, K, D) -> (n, K, K, D)
        x = x.reshape(num_pairs, 2, size, -1)
        return x[:, 0, :, None] + x[:, 1, None, :]

    state_dict = quantizer.state_dict()
    state_dict["to_logits.weight"] = sum_pairs(quantizer.to_logits.weight).view(-1, dim)
    state_dict["to_logits.bias"] = sum_pairs(quantizer.to_logits.bias).flatten()
    state_dict["centers"] = sum_pairs(quantizer.centers).view(num_pairs, -1, dim)
    with META_DEVICE:  # draws no random numbers, since all weights are replaced
        product = MultiCodebookQuantizer(dim, size**2, num_pairs, normalize=quantizer.normalize)
    product.to_empty(device=quantizer.centers.device).load_state_dict(state_dict)
    return product

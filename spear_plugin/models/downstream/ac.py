from __future__ import annotations

from fairseq2.models.utils.ac import apply_layerwise_ac
from torch.nn import Module

from spear_plugin.models.downstream.model import DownstreamModel


def apply_ac_to_downstream(model: DownstreamModel, every_nth_layer: int) -> Module:
    """Recompute every n-th layer of the encoder in the backward pass."""
    for layers in model.encoder.layer_lists():
        apply_layerwise_ac(layers, every_nth_layer)
    return model

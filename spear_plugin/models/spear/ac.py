from __future__ import annotations

from fairseq2.models.utils.ac import apply_layerwise_ac
from torch.nn import Module

from spear_plugin.models.spear.model import SpearModel


def apply_ac_to_spear(model: SpearModel, every_nth_layer: int) -> Module:
    """Recompute every n-th layer of each stack in the backward pass."""
    for layers in model.encoder.layer_lists:
        apply_layerwise_ac(layers, every_nth_layer)
    return model

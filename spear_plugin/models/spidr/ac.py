from __future__ import annotations

from fairseq2.models.utils.ac import apply_layerwise_ac
from torch.nn import Module

from spear_plugin.models.spidr.model import SpidrModel


def apply_ac_to_spidr(model: SpidrModel, every_nth_layer: int) -> Module:
    """Recompute every n-th layer of the student in the backward pass."""
    apply_layerwise_ac(model.student.layers, every_nth_layer)
    return model

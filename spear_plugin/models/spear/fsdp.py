from __future__ import annotations

from fairseq2.error import NotSupportedError
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from torch.nn import Module, ModuleList

from spear_plugin.models.spear.model import SpearModel


def apply_fsdp_to_spear(model: SpearModel, granularity: str, wrapper: FSDPWrapper) -> Module:
    """Shard each layer of each stack, or each stack; what is left is sharded with the model.

    Raises:
        NotSupportedError: If ``granularity`` is neither ``layer`` nor ``stack``.
    """
    if granularity == "layer":
        for layers in model.encoder.layer_lists:
            apply_layerwise_fsdp(layers, wrapper)
    elif granularity == "stack":
        model.encoder.encoders = ModuleList(wrapper(stack) for stack in model.encoder.encoders)
    else:
        raise NotSupportedError(f"`granularity` must be 'layer' or 'stack', but is {granularity!r} instead.")
    return model

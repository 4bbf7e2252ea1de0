from __future__ import annotations

from fairseq2.error import NotSupportedError
from fairseq2.nn.fsdp import FSDPWrapper
from torch.nn import Module, ModuleList

from spear_plugin.models.spear.model import SpearModel


def apply_fsdp_to_spear(model: SpearModel, granularity: str, wrapper: FSDPWrapper) -> Module:
    """Shard the encoder by ``granularity``: each Zipformer layer, or each stack of layers at one frame rate.

    Raises:
        NotSupportedError: If ``granularity`` is neither ``layer`` nor ``stack``.
    """
    if granularity == "layer":
        _wrap_all(model.encoder.layer_lists, wrapper)
    elif granularity == "stack":
        _wrap_all([model.encoder.encoders], wrapper)
    else:
        raise NotSupportedError(f"`granularity` must be 'layer' or 'stack', but is {granularity!r} instead.")
    return model


def _wrap_all(module_lists: list[ModuleList], wrapper: FSDPWrapper) -> None:
    last = module_lists[-1][-1]
    for modules in module_lists:
        for index, module in enumerate(modules):
            # The backward pass starts with the last one, so its parameters stay gathered.
            modules[index] = wrapper(module, reshard_after_forward=False if module is last else None)

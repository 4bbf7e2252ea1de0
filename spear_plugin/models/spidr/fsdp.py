from __future__ import annotations

from fairseq2.error import NotSupportedError
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from torch.nn import Module

from spear_plugin.models.spidr.model import SpidrModel


def apply_fsdp_to_spidr(model: SpidrModel, granularity: str, wrapper: FSDPWrapper) -> Module:
    """Shard student and teacher alike, so that the teacher's update works on the pieces of each process.

    Raises:
        NotSupportedError: If ``granularity`` is neither ``layer`` nor ``stack``.
    """
    if granularity == "layer":
        for encoder in (model.student, model.teacher):
            apply_layerwise_fsdp(encoder.layers, wrapper)
    elif granularity == "stack":
        for name in ("student", "teacher"):
            model.register_module(name, wrapper(model.get_submodule(name)))
    else:
        raise NotSupportedError(f"`granularity` must be 'layer' or 'stack', but is {granularity!r} instead.")
    return model

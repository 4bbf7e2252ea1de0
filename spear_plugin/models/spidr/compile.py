from __future__ import annotations

from typing import Any

from torch.nn import Module

from spear_plugin.models.spidr.model import SpidrModel


def compile_spidr(model: SpidrModel, *args: Any, **kwargs: Any) -> None:
    """Compile what takes the time, part by part; arguments are those of ``torch.compile``."""
    parts: list[Module] = [model.feature_extractor]
    for encoder in (model.student, model.teacher):
        parts += [encoder.pos_conv_embed, *encoder.layers]
    for part in parts:
        part.compile(*args, **kwargs)

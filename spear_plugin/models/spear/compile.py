from __future__ import annotations

from typing import Any

from spear_plugin.models.spear.model import SpearModel


def compile_spear(model: SpearModel, *args: Any, **kwargs: Any) -> None:
    """Compile each Zipformer layer on its own; arguments are those of ``torch.compile``."""
    for layers in model.encoder.layer_lists:
        for layer in layers:
            layer.compile(*args, **kwargs)

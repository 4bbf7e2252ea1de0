from __future__ import annotations

from typing import Any

from spear_plugin.models.downstream.model import DownstreamModel


def compile_downstream(model: DownstreamModel, *args: Any, **kwargs: Any) -> None:
    """Compile each layer of the encoder on its own; arguments are those of ``torch.compile``."""
    for layers in model.encoder.layer_lists():
        for layer in layers:
            layer.compile(*args, **kwargs)

"""The API of HEAR, Holistic Evaluation of Audio Representations (arXiv 2203.03022).

``hear-validator spear_plugin.interfaces.hear --model CHECKPOINT`` checks it. Letters: N batch, S samples, T frames,
D width.
"""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor
from torch.nn import Module

from spear_plugin.interfaces.encoder import (
    SAMPLE_RATE,
    LayerChoice,
    PretrainedEncoder,
    check_layers,
    load_pretrained_encoder,
)

_MILLISECONDS: Final = 1000.0


@final
class HearModel(Module):
    """A frozen encoder with what HEAR reads of it."""

    sample_rate = SAMPLE_RATE

    def __init__(self, encoder: PretrainedEncoder, layers: LayerChoice) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = layers
        self.timestamp_embedding_size = self.scene_embedding_size = encoder.dim_of(layers)
        self.eval()


def load_model(model_file_path: str = "", *, layers: str = "last") -> HearModel:
    """Load a model of SPEAR, SpidR or DinoSR to the CPU.

    Args:
        model_file_path: Name of a card; folder of a run, whose last checkpoint is meant; ``RUN/checkpoints/step_N``;
            or, of SPEAR, a folder of the released layout.
        layers: ``last``, the encoder's output; or ``all``, all layers side by side.

    Raises:
        RecipeError: If there is no such model or choice of layers, or it is damaged.
        ReleasedModelError: If a folder of the released layout is damaged.
    """
    choice = check_layers(layers)
    return HearModel(load_pretrained_encoder(model_file_path, "`model_file_path`"), choice)


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embed moments.

    Args:
        audio: (N, S) in [-1, 1] at 16 kHz; what is too short for a frame is continued with zeros.
        model: As :func:`load_model` returns it, on any device.

    Returns:
        Embeddings (N, T, D) float32, and the centre (N, T) float32 of each frame's receptive field, in milliseconds.
    """
    embeddings = model.encoder.embed(audio, model.layers)
    times = model.encoder.timing_of(model.layers).centres(embeddings.size(1)) * _MILLISECONDS  # (T,)
    timestamps = times.float().to(embeddings.device, non_blocking=True)
    return embeddings, timestamps.expand(embeddings.size(0), -1)


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return embeddings (N, D) float32 of whole recordings, the mean of their frames; arguments as above."""
    return model.encoder.embed(audio, model.layers).mean(dim=1)

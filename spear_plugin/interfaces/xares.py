"""An encoder for X-ARES (arXiv 2505.16369), which imports this file and creates the class that ends in ``Encoder``.

There is only one name with that ending here, as X-ARES demands. Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from spear_plugin.interfaces import encoder as pretrained
from spear_plugin.models.lookup import weights_digest

CHECKPOINT_VARIABLE: Final = "SPEAR_PLUGIN_CHECKPOINT"
LAYERS_VARIABLE: Final = "SPEAR_PLUGIN_LAYERS"

_PIECE_FRAMES: Final = 1600
"""Frames at 50 Hz of a piece of a long recording, 32 s: a multiple of the steps of all frame rates in the model."""


class BenchmarkEncoder(Module):
    """A frozen model of SPEAR, SpidR or DinoSR.

    X-ARES keeps embeddings and scores by the name of the class and takes what is there, so each model gets a class of
    its own, named after its weights.
    """

    sampling_rate = pretrained.SAMPLE_RATE

    def __init__(self, checkpoint: str | None = None, layers: str | None = None) -> None:
        """Load a model.

        Args:
            checkpoint: A card's name or a folder, as :func:`~spear_plugin.interfaces.hear.load_model` takes it; by
                default what the environment variable ``SPEAR_PLUGIN_CHECKPOINT`` holds.
            layers: ``last`` or ``all``; by default what ``SPEAR_PLUGIN_LAYERS`` holds, or ``last``.

        Raises:
            RecipeError: If there is no such model or choice of layers, or it is damaged.
            ReleasedModelError: If a folder of the released layout is damaged.
        """
        super().__init__()
        self.layers = pretrained.check_layers(layers or os.environ.get(LAYERS_VARIABLE) or "last")
        name = checkpoint or os.environ.get(CHECKPOINT_VARIABLE, "")
        self.model = pretrained.load_pretrained_encoder(name, f"the environment variable {CHECKPOINT_VARIABLE}")
        self.output_dim = self.model.dim_of(self.layers)
        self.hop_size_in_ms = 1000.0 / self.model.timing_of(self.layers).rate_hz
        kind = f"{self.layers.capitalize()}{weights_digest(self.model)}"
        self.eval()
        # What X-ARES asks is `type(encoder).__name__`.
        self.__class__ = type(f"{type(self).__name__.removesuffix('Encoder')}{kind}Encoder", (type(self),), {})

    @override
    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Return frames (N, T, D) float32, one every ``hop_size_in_ms``.

        Args:
            audio: (N, S) or (S,) in [-1, 1] at 16 kHz. Recordings of more than 32 s are encoded in pieces, and those of
                SpidR standardized in them.
        """
        waveforms = audio if audio.dim() == 2 else audio[None]
        # A piece reaches into the next one for as long as its last frame does, so that none is missing between them.
        hop = round(self.sampling_rate / self.model.layer_timing.rate_hz)
        step, reach = hop * _PIECE_FRAMES, self.model.min_samples - hop
        starts = range(0, max(1, waveforms.size(1) - self.model.min_samples + 1), step)
        pieces = [self.model.embed(waveforms[:, start : start + step + reach], self.layers) for start in starts]
        return torch.cat(pieces, dim=1)

    if TYPE_CHECKING:
        __call__ = forward

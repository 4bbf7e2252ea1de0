"""A pre-trained model as benchmarks see it. Letters: N batch, S samples, T frames, D width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final, get_args

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad
from typing_extensions import override

from spear_plugin.models.downstream.encoder import EncodedFrames, FrameEncoder, SpearEncoder, SpidrEncoder
from spear_plugin.models.lookup import family_of, find_card, load_config, load_model
from spear_plugin.models.spear import (
    SPEAR_FAMILY,
    SPEAR_TIMING,
    SpearModel,
    get_spear_model_hub,
    num_output_frames,
    output_timing,
)
from spear_plugin.models.spear.fbank import SAMPLE_RATE as SAMPLE_RATE
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel, get_spidr_model_hub, spidr_timing
from spear_plugin.nn.timing import FrameTiming

LayerChoice: TypeAlias = Literal["last", "all"]
"""The encoder's output, or all layers side by side."""

_MIN_SPEAR_SAMPLES: Final = 1360
"""Nine log-mel frames, which give one of the encoder's."""


@final
class PretrainedEncoder(Module):
    """A model of SPEAR, SpidR or DinoSR that takes waveforms of any length and knows when its frames are.

    It is in evaluation mode and requires no gradient until somebody changes that.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        *,
        layer_dims: Sequence[int],
        output_timing: FrameTiming,
        layer_timing: FrameTiming,
        count_layer_frames: Callable[[int], int],
        min_samples: int,
    ) -> None:
        """Put an encoder together.

        Args:
            encoder: The model.
            layer_dims: The width of each of its layers.
            output_timing: When the frames of its output are.
            layer_timing: When those of its layers are.
            count_layer_frames: Tells how many frames each layer has for a number of samples.
            min_samples: What gives one frame.
        """
        super().__init__()
        self.encoder = encoder
        self.layer_dims = layer_dims
        self.output_timing = output_timing
        self.layer_timing = layer_timing
        self.count_layer_frames = count_layer_frames
        self.min_samples = min_samples
        self.eval().requires_grad_(False)

    @property
    def output_dim(self) -> int:
        """The width of the encoder's output."""
        return self.encoder.dim

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> EncodedFrames:
        """Encode a batch; an utterance has the frames that it has alone.

        Args:
            waveforms: (N, S) in [-1, 1] at 16 kHz. What is too short for a frame is continued with zeros.
            lengths: (N,) int64 in samples, each at most S, on the host; None if nothing is padded.
        """
        if lengths is None:
            lengths = torch.full((waveforms.size(0),), waveforms.size(1))
        waveforms = pad(waveforms.float(), (0, max(0, self.min_samples - waveforms.size(1))))
        frames: EncodedFrames = self.encoder(waveforms, lengths.clamp(min=self.min_samples))
        return frames

    def embed(self, waveforms: Tensor, layers: LayerChoice) -> Tensor:
        """Return frames (N, T, D) float32 of utterances of one length, at the times of :meth:`timing_of`."""
        frames = self(waveforms)
        return (frames.last if layers == "last" else torch.cat(frames.layers, dim=2)).float()

    def timing_of(self, layers: LayerChoice) -> FrameTiming:
        """Return when the frames of :meth:`embed` are."""
        return self.output_timing if layers == "last" else self.layer_timing

    def dim_of(self, layers: LayerChoice) -> int:
        """Return D of the frames of :meth:`embed`."""
        return self.output_dim if layers == "last" else sum(self.layer_dims)

    if TYPE_CHECKING:
        __call__ = forward


def load_pretrained_encoder(checkpoint: str, where: str) -> PretrainedEncoder:
    """Load a model to the CPU.

    Args:
        checkpoint: Name of a card; folder of a run, whose last checkpoint is meant; ``RUN/checkpoints/step_N``; or, of
            SPEAR, a folder of the released layout.
        where: What messages call it.

    Raises:
        RecipeError: If it is not given, there is no such model, or it is damaged.
        ReleasedModelError: If a folder of the released layout is damaged.
    """
    if not checkpoint:
        raise RecipeError(f"{where}: must be the name of a card, or the folder of a run or of a released model.")
    card = find_card(checkpoint, where, SPEAR_FAMILY, SPIDR_FAMILY)
    device = torch.device("cpu")
    if family_of(card) == SPIDR_FAMILY:
        return _wrap_spidr(load_model(get_spidr_model_hub(), card, checkpoint, device=device))
    hub = get_spear_model_hub()
    # Heads are for pre-training.
    config = replace(load_config(hub, card, checkpoint), target_streams=[])
    return _wrap_spear(load_model(hub, card, checkpoint, device=device, config=config))


def check_layers(layers: str) -> LayerChoice:
    """Return a user's choice of layers.

    Raises:
        RecipeError: If it is none.
    """
    for choice in get_args(LayerChoice):
        if layers == choice:
            return choice  # type: ignore[no-any-return]
    raise RecipeError(f"`layers` must be one of {', '.join(get_args(LayerChoice))}, but is '{layers}'.")


def _wrap_spear(model: SpearModel) -> PretrainedEncoder:
    sizes = model.config.zipformer
    counted = replace(model.config, zipformer=replace(sizes, output_downsampling_factor=1))
    return PretrainedEncoder(
        SpearEncoder(model, augmentation=None),
        layer_dims=[dim for n, dim in zip(sizes.num_layers, sizes.encoder_dims, strict=True) for _ in range(n)],
        output_timing=output_timing(model.config),
        layer_timing=SPEAR_TIMING,
        count_layer_frames=partial(num_output_frames, config=counted),
        min_samples=_MIN_SPEAR_SAMPLES,
    )


def _wrap_spidr(model: SpidrModel) -> PretrainedEncoder:
    geometry, sizes = model.feature_extractor.geometry, model.config.encoder
    return PretrainedEncoder(
        SpidrEncoder(model, augmentation=None),
        layer_dims=[sizes.dim] * sizes.num_layers,
        output_timing=spidr_timing(geometry),
        layer_timing=spidr_timing(geometry),
        count_layer_frames=geometry.num_frames,
        min_samples=geometry.receptive_field,
    )

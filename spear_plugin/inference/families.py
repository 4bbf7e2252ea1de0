"""What the families have in common for those who want features: a grid of frames, and tensors to put together.

Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, final

from torch import Tensor
from typing_extensions import override

from spear_plugin.inference.chunks import FrameGrid
from spear_plugin.models.spear import SpearFeatures, SpearModel, num_output_frames
from spear_plugin.models.spear.fbank import SAMPLE_RATE
from spear_plugin.models.spidr import SAMPLE_RATE as SPIDR_SAMPLE_RATE
from spear_plugin.models.spidr import SpidrFeatures, SpidrModel

_FRAME: Final = 320
"""Samples between two frames of the Zipformer's layers, 20 ms."""


class FeatureReader(ABC):
    """Reads the features of a model as a list of tensors."""

    grid: FrameGrid

    num_layers: int

    @abstractmethod
    def read(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return tensors (N, T, D) for ``waveforms`` (N, S) and their ``lengths`` (N,), which are on the host.

        Args:
            waveforms: As the model takes them, on any device.
            lengths: In samples.
            layers: Indices of the layers that are wanted, from 0.
        """

    def frame_factor(self, index: int) -> int:
        """Return how many frames of the grid make one of a tensor of :meth:`read`."""
        del index
        return 1

    @abstractmethod
    def pack(self, tensors: list[Tensor], num_frames: Tensor) -> SpearFeatures | SpidrFeatures:
        """Return features of the family from tensors as of :meth:`read` and the frames (N,) on the grid."""


@final
class SpearReader(FeatureReader):
    """Reads the output, which may have half the frames of the grid, and layers."""

    def __init__(self, model: SpearModel) -> None:
        sizes = model.config.zipformer
        counted = replace(model.config, zipformer=replace(sizes, output_downsampling_factor=1))
        self._model = model
        self._output_factor = sizes.output_downsampling_factor
        self.num_layers = sum(sizes.num_layers)
        self.grid = FrameGrid(
            sample_rate=SAMPLE_RATE,
            hop=_FRAME,
            stride=_FRAME * math.lcm(*sizes.downsampling_factors, self._output_factor),
            num_lost=4,
            num_frames=lambda num_samples: num_output_frames(num_samples, counted),
        )

    @override
    def read(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        device = self._model.mask_emb.device
        features = self._model.extract_features(waveforms.to(device), lengths.to(device))
        return [features.last, *(features.layers[layer] for layer in layers)]

    @override
    def frame_factor(self, index: int) -> int:
        return self._output_factor if index == 0 else 1

    @override
    def pack(self, tensors: list[Tensor], num_frames: Tensor) -> SpearFeatures:
        lengths = -(-num_frames // self._output_factor)
        return SpearFeatures(last=tensors[0], lengths=lengths, layers=tensors[1:])


@final
class SpidrReader(FeatureReader):
    """Reads layers; nothing beyond the last one that is wanted is computed."""

    def __init__(self, model: SpidrModel) -> None:
        geometry = model.feature_extractor.geometry
        self._model = model
        self.num_layers = len(model.student.layers)
        # A frame more or less is the only difference between shifted recordings, so the stride is the hop.
        self.grid = FrameGrid(
            sample_rate=SPIDR_SAMPLE_RATE,
            hop=geometry.hop,
            stride=geometry.hop,
            num_lost=-(-(geometry.receptive_field - geometry.hop) // geometry.hop),
            num_frames=geometry.num_frames,
        )

    @override
    def read(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int]) -> list[Tensor]:
        device = self._model.mask_embedding.device
        num_layers = max(layers, default=-1) + 1
        features = self._model.extract_features(waveforms.to(device), lengths, num_layers=num_layers)
        return [features.layers[layer] for layer in layers]

    @override
    def pack(self, tensors: list[Tensor], num_frames: Tensor) -> SpidrFeatures:
        return SpidrFeatures(layers=tensors, lengths=num_frames)


def create_feature_reader(model: SpearModel | SpidrModel) -> FeatureReader:
    """Return the reader of a model's family."""
    return SpearReader(model) if isinstance(model, SpearModel) else SpidrReader(model)

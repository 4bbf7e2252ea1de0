"""What the recipe stores of each recording. Letters: N batch, S samples, T frames, D width, V units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from recipes.stores import FeatureMaker
from spear_plugin.data.feature_writer import StoredFeatures
from spear_plugin.models.spidr import SAMPLE_RATE, SpidrModel, standardize_waveforms


class FrameReader(ABC):
    """Reads something of each frame of recordings that are standardized one by one."""

    name = "SpidR"
    sample_rate = SAMPLE_RATE
    dim: int

    def __init__(self, model: SpidrModel, layer: int) -> None:
        self._model = model.eval()
        self._layer = layer
        self.geometry = model.feature_extractor.geometry

    def num_frames(self, num_samples: int) -> int:
        return self.geometry.num_frames(num_samples)

    def read(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return (T, dim) of each of the ``waveforms`` (N, S), zero beyond their ``lengths`` (N,)."""
        lengths = lengths.cpu()
        frames = self._read(standardize_waveforms(waveforms, lengths), lengths)
        counts = self.geometry.num_frames_of(lengths).tolist()
        return [row[:count] for row, count in zip(frames, counts, strict=True)]

    @abstractmethod
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return (N, T, dim)."""


@final
class FeatureReader(FrameReader):
    """Reads the features of a layer."""

    def __init__(self, model: SpidrModel, layer: int) -> None:
        super().__init__(model, layer)
        self.dim = model.config.encoder.dim

    @override
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return self._model.extract_features(waveforms, lengths, num_layers=self._layer).layers[-1]


@final
class ProbabilityReader(FrameReader):
    """Reads the probabilities that the head of a layer gives to its codes."""

    def __init__(self, model: SpidrModel, layer: int) -> None:
        super().__init__(model, layer)
        self.dim = model.config.codebook.codebook_size

    @override
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return self._model.unit_probabilities(waveforms, lengths, self._layer)


class _ReaderMaker(FeatureMaker):
    name = FrameReader.name
    sample_rate = FrameReader.sample_rate

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._reader.num_frames(num_samples)


@final
class FrameMaker(_ReaderMaker):
    """Stores frames as they are read, (T, dim)."""

    def __init__(self, reader: FrameReader, dtype: torch.dtype) -> None:
        super().__init__(reader)
        self._dtype = dtype

    @override
    def make(self, waveforms: Tensor, lengths: Tensor) -> list[StoredFeatures]:
        # A copy: a view would keep the whole batch in memory.
        return [
            StoredFeatures(frames.to("cpu", self._dtype).clone(memory_format=torch.contiguous_format), frames.size(0))
            for frames in self._reader.read(waveforms, lengths)
        ]


@final
class UnitMaker(_ReaderMaker):
    """Stores units, (T,) int16, or as many as there are runs of equal ones.

    Args:
        reader: Reads probabilities, or features if there are clusters.
        centres: (V, D), of the clusters of features; None takes the likeliest code.
        deduplicate: Whether a run is one.
    """

    def __init__(self, reader: FrameReader, centres: Tensor | None, *, deduplicate: bool) -> None:
        super().__init__(reader)
        self._centres = centres
        self._deduplicate = deduplicate

    @override
    def make(self, waveforms: Tensor, lengths: Tensor) -> list[StoredFeatures]:
        made = []
        for frames in self._reader.read(waveforms, lengths):
            if self._centres is None:
                units = frames.argmax(dim=1)
            else:
                units = torch.cdist(frames.float(), self._centres).argmin(dim=1)
            if self._deduplicate:
                units = units.unique_consecutive()
            made.append(StoredFeatures(units.to("cpu", torch.int16), frames.size(0)))
        return made

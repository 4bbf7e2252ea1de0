"""What the recipe stores of each recording. Letters: N batch, S samples, T frames, D width, V units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FeatureSource, FrameTiming, SpidrSource, spidr_timing
from recipes.stores import FeatureMaker
from spear_plugin.data.feature_writer import StoredFeatures
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms


class FrameReader(ABC):
    """Reads something of each frame of recordings."""

    name: str
    sample_rate: int
    timing: FrameTiming
    dim: int

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Return the frames of a recording."""

    @abstractmethod
    def read(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return (T, dim) of each of the ``waveforms`` (N, S), zero beyond their ``lengths`` (N,)."""


@final
class SourceReader(FrameReader):
    """Reads a layer of a source of features."""

    def __init__(self, source: FeatureSource, layer: int) -> None:
        self._source = source
        self._layer = layer
        self.name = source.name
        self.sample_rate = source.sample_rate
        self.timing = source.timing
        self.dim = source.layer_dims[layer - 1]

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._source.num_frames(num_samples)

    @override
    def read(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        layers, counts = self._source.extract(waveforms, lengths.to(waveforms.device))
        return [row[:count] for row, count in zip(layers[self._layer - 1], counts.tolist(), strict=True)]


class SpidrReader(FrameReader):
    """Reads recordings that are standardized one by one; nothing beyond the layer is computed."""

    name = SpidrSource.name
    sample_rate = SpidrSource.sample_rate

    def __init__(self, model: SpidrModel, layer: int) -> None:
        self._model = model.eval()
        self._layer = layer
        self._geometry = model.feature_extractor.geometry
        self.timing = spidr_timing(self._geometry)

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._geometry.num_frames(num_samples)

    @override
    def read(self, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
        lengths = lengths.cpu()
        frames = self._read(standardize_waveforms(waveforms, lengths), lengths)
        counts = self._geometry.num_frames_of(lengths).tolist()
        return [row[:count] for row, count in zip(frames, counts, strict=True)]

    @abstractmethod
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return (N, T, dim)."""


@final
class FeatureReader(SpidrReader):
    """Reads the features of a layer."""

    def __init__(self, model: SpidrModel, layer: int) -> None:
        super().__init__(model, layer)
        self.dim = model.config.encoder.dim

    @override
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return self._model.extract_features(waveforms, lengths, num_layers=self._layer).layers[-1]


@final
class ProbabilityReader(SpidrReader):
    """Reads the probabilities that the head of a layer gives to its codes."""

    def __init__(self, model: SpidrModel, layer: int) -> None:
        super().__init__(model, layer)
        self.dim = model.config.codebook.codebook_size

    @override
    def _read(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        return self._model.unit_probabilities(waveforms, lengths, self._layer)


class _ReaderMaker(FeatureMaker):
    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader

    @property
    @override
    def name(self) -> str:
        return self._reader.name

    @property
    @override
    def sample_rate(self) -> int:
        return self._reader.sample_rate

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

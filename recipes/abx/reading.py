"""Frames of recordings, from a source of features or from a store. Letters: L layers, N batch, S samples, T frames."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.abx.config import AbxSourceSection
from recipes.common import CorpusSection, read_batches
from recipes.feature_sources import FeatureSource, FrameTiming
from recipes.features import open_source
from spear_plugin.data.features import FeatureStore
from spear_plugin.data.manifest import ManifestRow


class FrameReader(ABC):
    """Reads features or units of recordings."""

    identity: str
    """Changes when what is read may change."""

    timing: FrameTiming

    layers: Sequence[int]
    """The numbers of the layers, the first one 1; 0 is an output of which the store does not tell the layer."""

    num_units: int | None = None
    """V of units; None for features."""

    @abstractmethod
    def read(self, rows: Sequence[ManifestRow]) -> Iterator[tuple[ManifestRow, list[Tensor]]]:
        """Yield each of the recordings once, in any order, with its layers, L of (T, D) on the CPU; D is 1 for units.

        Raises:
            FeatureStoreError: If a store has no frames of a recording, or is damaged.
            RecipeError: If a recording has no usable audio.
        """


def open_reader(section: AbxSourceSection, corpus: CorpusSection, *, seed: int, device: torch.device) -> FrameReader:
    """Open what a section of the configuration describes.

    Raises:
        FeatureStoreError: If a store is missing, unfinished or damaged.
        RecipeError: If a checkpoint is missing or damaged, or a store has no frames.
        TeacherError: If a teacher cannot be loaded.
    """
    if section.kind == "store":
        reader: FrameReader = StoreReader(section)
    else:
        reader = SourceReader(open_source(section, device=device, seed=seed), corpus, device)
    # Frames are looked up later by so much, that is they seem to be earlier.
    reader.timing = replace(reader.timing, first_centre=reader.timing.first_centre - section.time_shift)
    return reader


@final
class StoreReader(FrameReader):
    """Reads a feature store."""

    def __init__(self, section: AbxSourceSection) -> None:
        assert section.store is not None  # by the validation of the section
        self._store = FeatureStore(section.store)
        meta = self._store.meta
        if meta.pooling != "none":
            raise RecipeError(
                f"features '{section.name}': must be a store of frames, but {section.store} has `pooling` "
                f"{meta.pooling}. Write it without pooling, and units without `deduplicate`."
            )
        self.identity = f"store:{hashlib.sha256(repr(meta).encode()).hexdigest()[:16]}"
        self.timing = FrameTiming(meta.frame_rate_hz, meta.first_centre)
        self._is_stacked = meta.layers != "last"
        self.layers = [0] if meta.layers == "last" else [index + 1 for index in meta.layers]
        self._is_of_units = meta.dtype == "int16"
        if self._is_of_units:
            self.num_units = meta.num_units or 1 + max(int(self._store[id_].max()) for id_ in self._store)

    @override
    def read(self, rows: Sequence[ManifestRow]) -> Iterator[tuple[ManifestRow, list[Tensor]]]:
        for row in rows:
            frames = self._store[row.id]
            if self._is_of_units:
                frames = frames[:, None]
            yield row, list(frames) if self._is_stacked else [frames]


@final
class SourceReader(FrameReader):
    """Extracts features."""

    def __init__(self, source: FeatureSource, corpus: CorpusSection, device: torch.device) -> None:
        self._source = source
        self._corpus = corpus
        self._device = device
        self.identity = source.identity
        self.timing = source.timing
        self.layers = range(1, len(source.layer_dims) + 1)

    @override
    def read(self, rows: Sequence[ManifestRow]) -> Iterator[tuple[ManifestRow, list[Tensor]]]:
        source = self._source
        for batch, reads in read_batches(
            rows, self._corpus, sample_rate=source.sample_rate, num_frames=source.num_frames, reader=source.name
        ):
            waveforms = [read for read in reads if isinstance(read, Tensor)]
            if problems := [read for read in reads if isinstance(read, str)]:
                raise RecipeError(f"{problems[0]}. Leave the recording out of the manifest.")
            lengths = torch.tensor([waveform.numel() for waveform in waveforms])
            with torch.inference_mode():
                padded = pad_sequence(waveforms, batch_first=True).to(self._device)  # (N, S)
                layers, counts = source.extract(padded, lengths.to(self._device))
            for index, (row, count) in enumerate(zip(batch, counts.tolist(), strict=True)):
                yield row, [layer[index, :count].float().cpu() for layer in layers]

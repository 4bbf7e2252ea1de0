"""What a section of the configuration describes, read frame by frame."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from recipes.abx.config import AbxSourceSection
from recipes.common import CorpusSection
from recipes.feature_sources import FrameTiming
from recipes.features import open_source
from recipes.frame_readers import FrameReader, SourceReader
from spear_plugin.data.features import FeatureStore
from spear_plugin.data.manifest import ManifestRow


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

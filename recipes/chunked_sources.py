"""Features of recordings that are too long for one pass, by chunks.

Letters: L layers, N batch, S samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FeatureSource
from spear_plugin.inference import check_chunks, extract_features_in_chunks
from spear_plugin.models.spear import SpearFeatures
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms


@dataclass(kw_only=True)
class ChunkSection(Validatable):
    """Chunks of recordings that are too long for one pass."""

    seconds: float = 30.0
    """Length of a chunk; shorter recordings are encoded in one pass."""

    overlap_seconds: float = 10.0
    """What two chunks share. The seam is in the middle."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 0.0 < self.overlap_seconds < self.seconds:
            allowed = f"between 0 and `seconds` ({self.seconds:g})"
            result.add_error(f"`overlap_seconds` must be {allowed}, but is {self.overlap_seconds:g}.")

        return result


@final
class ChunkedSource(FeatureSource):
    """Some layers of a source that reads a model of ours; as many chunks at a time as there are recordings."""

    def __init__(
        self, source: FeatureSource, section: ChunkSection, layers: Sequence[int], *, output_only: bool
    ) -> None:
        """Read a source in chunks.

        Args:
            source: What it reads.
            section: Lengths of chunks and overlaps.
            layers: Indices of the source's layers, which are all that this source has.
            output_only: Whether the source's only layer is its model's output.

        Raises:
            RecipeError: If the source is no model of ours, or chunks do not fit it.
        """
        if source.model is None:
            raise RecipeError(f"`chunks` must not be set for {source.name}: only models are read in chunks.")
        try:
            check_chunks(source.model, chunk_seconds=section.seconds, overlap_seconds=section.overlap_seconds)
        except ValueError as ex:
            raise RecipeError(f"`chunks`: {ex}") from None
        self.name = source.name
        self.identity = f"{source.identity}:chunks:{section.seconds:g}:{section.overlap_seconds:g}"
        self.sample_rate = source.sample_rate
        self.timing = source.timing
        self.layer_dims = [source.layer_dims[layer] for layer in layers]
        self._source = source
        self._model = source.model
        self._section = section
        self._layers: Sequence[int] = layers
        if output_only:
            self._layers = [len(source.model.student.layers) - 1] if isinstance(source.model, SpidrModel) else ()

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._source.num_frames(num_samples)

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        if isinstance(self._model, SpidrModel):
            waveforms = standardize_waveforms(waveforms, lengths)
        features = extract_features_in_chunks(
            self._model,
            waveforms,
            lengths,
            chunk_seconds=self._section.seconds,
            overlap_seconds=self._section.overlap_seconds,
            batch_size=waveforms.size(0),
            layers=self._layers,
        )
        num_frames = torch.tensor([self.num_frames(number) for number in lengths.tolist()], device=lengths.device)
        if isinstance(features, SpearFeatures) and not self._layers:
            return [features.last], num_frames
        return features.layers, num_frames

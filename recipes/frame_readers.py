"""Frames of whole recordings, from whatever has them. Letters: L layers, N batch, S samples, T frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.common import CorpusSection, read_batches
from recipes.feature_sources import FeatureSource, FrameTiming
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

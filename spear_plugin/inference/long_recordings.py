"""Features of recordings that are too long for one pass, whose attention needs memory by the square of their length.

Letters: N batch, S samples, C chunks at a time, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spear_plugin.inference.chunks import Chunk, ChunkPlan
from spear_plugin.inference.families import FeatureReader, create_feature_reader
from spear_plugin.models.spear import SpearFeatures, SpearModel
from spear_plugin.models.spidr import SpidrFeatures, SpidrModel


@overload
def extract_features_in_chunks(
    model: SpearModel,
    waveforms: Tensor,
    lengths: Tensor,
    *,
    chunk_seconds: float = ...,
    overlap_seconds: float = ...,
    batch_size: int = ...,
    layers: Sequence[int] | None = ...,
) -> SpearFeatures: ...


@overload
def extract_features_in_chunks(
    model: SpidrModel,
    waveforms: Tensor,
    lengths: Tensor,
    *,
    chunk_seconds: float = ...,
    overlap_seconds: float = ...,
    batch_size: int = ...,
    layers: Sequence[int] | None = ...,
) -> SpidrFeatures: ...


@torch.no_grad()
def extract_features_in_chunks(
    model: SpearModel | SpidrModel,
    waveforms: Tensor,
    lengths: Tensor,
    *,
    chunk_seconds: float = 30.0,
    overlap_seconds: float = 10.0,
    batch_size: int = 1,
    layers: Sequence[int] | None = None,
) -> SpearFeatures | SpidrFeatures:
    """Return features of recordings of any length by overlapping chunks, without gradient.

    Frames are at the places that they have in one pass, and a recording that is no longer than a chunk has the features
    of one pass. Those of others differ by what attention, and the convolutions of deep layers, would see beyond the
    chunk; docs/inference.md has measurements.

    Args:
        model: In evaluation mode, on any device.
        waveforms: (N, S) as the model's ``extract_features`` takes them, on any device; for SpidR whole recordings are
            standardized, not chunks.
        lengths: (N,) int64 in samples, each at most S; read on the host.
        chunk_seconds: Length of a chunk, rounded to the model's stride (0.16 s for SPEAR Base, 0.02 s for SpidR).
        overlap_seconds: What two chunks share, rounded likewise. Half of it or more is on either side of a seam.
        batch_size: C; chunks of all recordings are encoded so many at a time.
        layers: Indices, from 0, of the layers to keep; by default all. ``()`` keeps none.

    Returns:
        Features on the device of ``waveforms``, zero beyond the lengths.

    Raises:
        ValueError: If no recording has a frame, there is no such layer, or the overlap does not fit the chunks.
    """
    reader = create_feature_reader(model)
    plan = ChunkPlan.create(reader.grid, chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds)
    chosen = _check_layers(layers, reader.num_layers)
    num_samples: list[int] = lengths.tolist()
    num_frames = torch.tensor([plan.grid.num_frames(number) for number in num_samples], device=waveforms.device)
    return _extract(reader, waveforms, num_frames, _cut(plan, num_samples, batch_size), chosen)


def check_chunks(model: SpearModel | SpidrModel, *, chunk_seconds: float, overlap_seconds: float) -> None:
    """Raise :class:`ValueError` if a model cannot be used with such chunks."""
    grid = create_feature_reader(model).grid
    ChunkPlan.create(grid, chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds)


def _check_layers(layers: Sequence[int] | None, num_layers: int) -> Sequence[int]:
    if layers is None:
        return range(num_layers)
    if any(not 0 <= layer < num_layers for layer in layers):
        raise ValueError(f"`layers` must be from 0 to {num_layers - 1}, but are {list(layers)} instead.")
    return layers


def _cut(plan: ChunkPlan, num_samples: list[int], batch_size: int) -> list[list[tuple[int, Chunk]]]:
    """Return groups of chunks, each with the number of its recording."""
    chunks = [(row, chunk) for row, number in enumerate(num_samples) for chunk in plan.cut(number)]
    if not chunks:
        raise ValueError(
            "`lengths` must have one that is long enough for a frame, but are at most "
            f"{max(num_samples, default=0)} samples instead."
        )
    # Those of like lengths together, so that little is padded.
    chunks.sort(key=lambda item: item[1].start - item[1].stop)
    return [chunks[first : first + batch_size] for first in range(0, len(chunks), batch_size)]


def _extract(
    reader: FeatureReader,
    waveforms: Tensor,
    num_frames: Tensor,
    groups: list[list[tuple[int, Chunk]]],
    layers: Sequence[int],
) -> SpearFeatures | SpidrFeatures:
    results: list[Tensor] = []
    for group in groups:
        pieces = [waveforms[row, chunk.start : chunk.stop] for row, chunk in group]
        lengths = torch.tensor([piece.size(0) for piece in pieces])
        tensors = reader.read(pad_sequence(pieces, batch_first=True), lengths, layers)
        if not results:
            results = list(_allocate(reader, tensors, waveforms, num_frames))
        for index, (result, tensor) in enumerate(zip(results, tensors, strict=True)):
            factor = reader.frame_factor(index)
            for frames, (row, chunk) in zip(tensor, group, strict=True):
                _put(result[row], frames, chunk, reader.grid.hop * factor, factor)
    return reader.pack(results, num_frames)


def _allocate(reader: FeatureReader, tensors: list[Tensor], waveforms: Tensor, num_frames: Tensor) -> Iterator[Tensor]:
    """Yield zeros (N, T, D) for what each of ``tensors`` (C, T, D) is a part of."""
    for index, tensor in enumerate(tensors):
        size = -(-int(num_frames.max()) // reader.frame_factor(index))
        yield tensor.new_zeros((waveforms.size(0), size, tensor.size(2)), device=waveforms.device)


def _put(result: Tensor, frames: Tensor, chunk: Chunk, hop: int, factor: int) -> None:
    """Copy what is taken from a chunk, from its ``frames`` (T, D), one every ``hop`` samples, to the recording's."""
    first, last = chunk.first_frame // factor, -(-chunk.last_frame // factor)
    origin = chunk.start // hop
    result[first:last] = frames[first - origin : last - origin]

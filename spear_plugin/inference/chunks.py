"""Where a long recording is cut, so that the frames of all chunks are those of one grid.

Frame ``t`` of a recording is frame ``t - s / hop`` of a chunk that begins at the sample ``s``, a multiple of the
model's stride: then every down-sampling groups the same frames as in one pass. Chunks overlap, and in the middle of an
overlap the frames of one chunk are followed by those of the next, so what a model makes of the ends of a chunk (padding
of convolutions, mirrored samples, missing frames) is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class FrameGrid:
    """Which samples the frames of a model stand for."""

    sample_rate: int

    hop: int
    """Samples from one frame to the next."""

    stride: int
    """Samples, a multiple of ``hop``, by which a recording can be shifted so that its frames are shifted likewise."""

    num_lost: int
    """Frames that a long waveform has less than ``num_samples / hop``, since convolutions are not padded."""

    num_frames: Callable[[int], int]
    """From samples to frames; 0 if there are too few."""


@final
@dataclass(frozen=True)
class Chunk:
    """A piece of a recording, and which frames are taken from it."""

    start: int
    """First sample, a multiple of the stride."""

    stop: int
    """End in samples."""

    first_frame: int
    """First frame of the recording that is taken from this chunk."""

    last_frame: int
    """End of those frames."""


@final
@dataclass(frozen=True)
class ChunkPlan:
    """Cuts recordings into chunks of one length."""

    grid: FrameGrid

    size: int
    """Samples of a chunk, a multiple of the stride."""

    context: int
    """Samples, a multiple of the stride, that a chunk has at least on the far side of a seam: half an overlap."""

    @staticmethod
    def create(grid: FrameGrid, *, chunk_seconds: float, overlap_seconds: float) -> ChunkPlan:
        """Return the plan whose chunks are nearest to those that are asked for.

        Args:
            grid: The model's frames.
            chunk_seconds: Length of a chunk; rounded to a multiple of the stride.
            overlap_seconds: What two chunks share; rounded to a multiple of twice the stride.

        Raises:
            ValueError: If the overlap is too small for the frames that the end of a chunk lacks, or chunks are not
                longer than it.
        """
        size = round(chunk_seconds * grid.sample_rate / grid.stride) * grid.stride
        context = round(0.5 * overlap_seconds * grid.sample_rate / grid.stride) * grid.stride
        smallest = -(-grid.num_lost * grid.hop // grid.stride) * grid.stride
        if context < smallest:
            raise ValueError(
                f"`overlap_seconds` must be at least {2 * smallest / grid.sample_rate:g} for this model, but is "
                f"{overlap_seconds:g} instead."
            )
        if size < 2 * context + grid.stride:
            raise ValueError(
                f"`chunk_seconds` must be at least {(2 * context + grid.stride) / grid.sample_rate:g} with an overlap "
                f"of {overlap_seconds:g} s, but is {chunk_seconds:g} instead."
            )
        return ChunkPlan(grid, size, context)

    def cut(self, num_samples: int) -> list[Chunk]:
        """Return the chunks of a recording, of which each frame is in one; none if it is too short for a frame.

        A recording of at most :attr:`size` is one chunk. The last chunk of others is about as long as the rest: it
        overlaps more instead.
        """
        num_frames = self.grid.num_frames(num_samples)
        if num_frames == 0:
            return []
        starts = list(self._starts(num_samples))
        stops = [start + self.size for start in starts[:-1]] + [num_samples]
        seams = [self._seam(stop, start) for stop, start in zip(stops[:-1], starts[1:], strict=True)]
        frames = [0, *seams, num_frames]
        return [Chunk(*chunk) for chunk in zip(starts, stops, frames[:-1], frames[1:], strict=True)]

    def _starts(self, num_samples: int) -> Iterator[int]:
        num_beyond = max(0, num_samples - self.size)
        yield from range(0, num_beyond, self.size - 2 * self.context)
        # The last one reaches the end.
        yield -(-num_beyond // self.grid.stride) * self.grid.stride

    def _seam(self, stop: int, next_start: int) -> int:
        """Return the frame, on the grid, in the middle of the overlap of two chunks."""
        num_strides = (stop - next_start) // self.grid.stride
        return (next_start + num_strides // 2 * self.grid.stride) // self.grid.hop

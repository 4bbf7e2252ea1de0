"""Cutting of long rows into segments that begin on a whole code frame of every stream.

Everything here is arithmetic on lengths in samples of the reader's rate; no file is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class FrameClock:
    """Counts the code frames of a stream exactly, without rounding errors of floats."""

    frames_per_sample: Fraction

    @staticmethod
    def of(frame_rate_hz: float, sample_rate: int) -> FrameClock:
        return FrameClock(Fraction(frame_rate_hz).limit_denominator(1000) / sample_rate)

    def num_frames(self, num_samples: int) -> int:
        """Return int(duration * rate), as the authors cut codes (spec, section 4, target/student alignment)."""
        return num_samples * self.frames_per_sample.numerator // self.frames_per_sample.denominator

    @property
    def grid(self) -> int:
        """Smallest number of samples that is a whole number of frames."""
        return self.frames_per_sample.denominator


@final
@dataclass(frozen=True, kw_only=True)
class SegmentTable:
    """Segments of the rows of a corpus, in order, one entry each in the three arrays."""

    rows: NDArray[np.int64]
    """Index of the row in the manifest."""

    starts: NDArray[np.int64]
    """In samples from the beginning of the row."""

    lengths: NDArray[np.int64]
    """In samples."""

    num_short_rows: int
    """Rows left out because they are shorter than the minimum."""

    num_short_tails: int
    """Ends of long rows left out for the same reason."""

    def __len__(self) -> int:
        return self.rows.size


def cut_segments(lengths: NDArray[np.int64], *, min_length: int, max_length: int, grid: int | None) -> SegmentTable:
    """Cut rows into consecutive segments of at most ``max_length`` samples.

    :param lengths: Length of each row in samples.
    :param grid: Segments begin at multiples of it; at most ``max_length``. None: a row gives one segment, whose place
        in the row is left open.
    """
    if grid is None:
        return _clip_rows(lengths, min_length, max_length)

    step = max_length // grid * grid
    counts = np.where(lengths <= max_length, 1, -(-lengths // step))
    rows = np.repeat(np.arange(lengths.size), counts)

    # 0, 1, 2, ... within each row
    order = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = order * step
    ends = np.where(order + 1 == counts[rows], lengths[rows], starts + step)
    long_enough = ends - starts >= min_length
    num_short_rows = int(np.count_nonzero(lengths < min_length))

    return SegmentTable(
        rows=rows[long_enough],
        starts=starts[long_enough],
        lengths=(ends - starts)[long_enough],
        num_short_rows=num_short_rows,
        num_short_tails=int(np.count_nonzero(~long_enough)) - num_short_rows,
    )


def common_grid(clocks: Iterable[FrameClock]) -> int:
    """Return the smallest number of samples that is a whole number of frames of every stream."""
    return math.lcm(*(clock.grid for clock in clocks))


def _clip_rows(lengths: NDArray[np.int64], min_length: int, max_length: int) -> SegmentTable:
    (rows,) = np.nonzero(lengths >= min_length)

    return SegmentTable(
        rows=rows,
        starts=np.zeros_like(rows),
        lengths=np.minimum(lengths[rows], max_length),
        num_short_rows=lengths.size - rows.size,
        num_short_tails=0,
    )

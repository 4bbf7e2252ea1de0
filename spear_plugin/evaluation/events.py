"""Sound events in time: from frame-wise activity to events, and how many of them are right.

Event-based and segment-based measures of Mesaros et al. ("Metrics for polyphonic sound event detection", Applied
Sciences 2016), as HEAR (arXiv 2203.03022) scores its timestamp tasks.

Letters: T frames, V classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Self, final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class Event:
    """A sound of a class; times in seconds."""

    start: float

    end: float

    label: int


@final
@dataclass(frozen=True)
class DetectionCounts:
    """Hits, false alarms and misses; those of several recordings add up."""

    hits: int = 0

    false_alarms: int = 0

    misses: int = 0

    def __add__(self, other: Self) -> DetectionCounts:
        return DetectionCounts(
            self.hits + other.hits, self.false_alarms + other.false_alarms, self.misses + other.misses
        )

    @property
    def numerator(self) -> int:
        """Of the F-measure."""
        return 2 * self.hits

    @property
    def denominator(self) -> int:
        """Of the F-measure."""
        return 2 * self.hits + self.false_alarms + self.misses

    @property
    def f_measure(self) -> float:
        """The harmonic mean of precision and recall, in [0, 1]; 0 where there is nothing to find and nothing found."""
        return self.numerator / self.denominator if self.denominator else 0.0


def find_events(
    active: NDArray[np.bool_], *, frame_seconds: float, min_seconds: float = 0.0, median_frames: int = 1
) -> list[Event]:
    """Return the runs of active frames of each class, in the order of classes and times.

    :param active: (T, V); frame t lasts from t to t + 1 times ``frame_seconds``.
    :param min_seconds: Shorter events are left out.
    :param median_frames: Odd width of a median filter over time that comes first; 1 for none.
    """
    smooth = _filter_by_median(active, median_frames).astype(np.int8)
    edges = np.diff(np.pad(smooth, ((1, 1), (0, 0))), axis=0).T  # (V, T + 1): 1 begins, -1 ends
    labels, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    # Half a frame of slack: sums of frames and a limit in seconds need not round alike.
    kept = (ends - starts + 0.5) * frame_seconds >= min_seconds
    return [
        Event(start * frame_seconds, end * frame_seconds, label)
        for label, start, end in zip(labels[kept].tolist(), starts[kept].tolist(), ends[kept].tolist(), strict=True)
    ]


def _filter_by_median(active: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return whether more than half of the ``width`` frames around each one are active; none is beyond the ends."""
    sums = np.pad(
        np.cumsum(np.pad(active.astype(np.int64), ((width // 2, width // 2), (0, 0))), axis=0), ((1, 0), (0, 0))
    )
    return np.asarray(2 * (sums[width:] - sums[:-width]) > width)


def count_onsets(reference: Iterable[Event], estimated: Iterable[Event], *, tolerance: float) -> DetectionCounts:
    """Count events of the same class whose onsets are at most ``tolerance`` seconds apart, each event at most once.

    The number of pairs is the largest possible one.
    """
    expected, found = _onsets_of_classes(reference), _onsets_of_classes(estimated)
    counts = DetectionCounts()
    for label in expected.keys() | found.keys():
        hits = _match_sorted(expected[label], found[label], tolerance)
        counts += DetectionCounts(hits, len(found[label]) - hits, len(expected[label]) - hits)
    return counts


def count_segments(
    reference: Iterable[Event], estimated: Iterable[Event], *, duration: float, segment_seconds: float
) -> DetectionCounts:
    """Count classes in segments of the time line; a class is active where any part of an event of it lies."""
    expected, found = (_active_segments(events, duration, segment_seconds) for events in (reference, estimated))
    hits = len(expected & found)
    return DetectionCounts(hits, len(found) - hits, len(expected) - hits)


def _onsets_of_classes(events: Iterable[Event]) -> defaultdict[int, list[float]]:
    onsets = defaultdict(list)
    for event in sorted(events, key=lambda event: event.start):
        onsets[event.label].append(event.start)
    return onsets


def _match_sorted(expected: Sequence[float], found: Sequence[float], tolerance: float) -> int:
    """Return the size of the largest matching: with one tolerance for all, the earliest partner is a best one."""
    hits = next_found = 0
    for onset in expected:
        while next_found < len(found) and found[next_found] < onset - tolerance - 1e-9:
            next_found += 1
        if next_found < len(found) and found[next_found] <= onset + tolerance + 1e-9:
            hits, next_found = hits + 1, next_found + 1
    return hits


def _active_segments(events: Iterable[Event], duration: float, segment_seconds: float) -> set[tuple[int, int]]:
    """Return (segment, class) of all that is active."""
    last = ceil(duration / segment_seconds - 1e-6)
    return {
        (segment, event.label)
        for event in events
        for segment in range(
            floor(event.start / segment_seconds + 1e-6), min(last, ceil(event.end / segment_seconds - 1e-6))
        )
    }

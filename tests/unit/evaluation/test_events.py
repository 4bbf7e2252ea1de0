from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from spear_plugin.evaluation import DetectionCounts, Event, count_onsets, count_segments, find_events


def draw_events(generator: np.random.Generator, number: int) -> list[Event]:
    starts = np.round(generator.uniform(0.0, 4.0, number), 2)
    labels = generator.integers(2, size=number)
    return [Event(s, s + 0.3, c) for s, c in zip(starts.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize("width", [1, 3, 5])
def test_events_are_the_runs_of_active_frames(width: int) -> None:
    active = np.random.default_rng(0).random((60, 3)) < 0.5
    smooth = median_filter(active.astype(int), size=(width, 1), mode="constant")
    expected = []
    for label in range(3):
        for frame in range(60):
            if smooth[frame, label] and (frame == 0 or not smooth[frame - 1, label]):
                last = frame
                while last + 1 < 60 and smooth[last + 1, label]:
                    last += 1
                expected.append(Event(frame * 0.02, (last + 1) * 0.02, label))
    assert find_events(active, frame_seconds=0.02, median_frames=width) == expected


def test_short_events_are_left_out() -> None:
    active = np.array([[1, 0, 1, 1, 0, 1, 1, 1]], dtype=bool).T
    starts = [event.start for event in find_events(active, frame_seconds=0.1, min_seconds=0.2)]
    assert starts == pytest.approx([0.2, 0.5])
    assert find_events(np.zeros((0, 2), dtype=bool), frame_seconds=0.1) == []


@pytest.mark.parametrize("seed", range(5))
def test_onsets_are_paired_as_often_as_can_be(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference, estimated = draw_events(generator, 20), draw_events(generator, 25)
    near = np.array(
        [[r.label == e.label and abs(r.start - e.start) <= 0.2 + 1e-9 for e in estimated] for r in reference]
    )
    hits = int((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum())
    assert count_onsets(reference, estimated, tolerance=0.2) == DetectionCounts(hits, 25 - hits, 20 - hits)


def test_an_onset_on_the_edge_of_the_tolerance_is_right_and_an_event_counts_once() -> None:
    reference = [Event(1.0, 1.5, 0)]
    assert count_onsets(reference, [Event(1.2, 2.0, 0), Event(0.9, 1.0, 0)], tolerance=0.2) == DetectionCounts(1, 1, 0)
    assert count_onsets(reference, [Event(1.0, 1.5, 1)], tolerance=0.2) == DetectionCounts(0, 1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_segments_are_active_where_any_part_of_an_event_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference, estimated = draw_events(generator, 6), draw_events(generator, 6)

    def is_active(events: list[Event], segment: int, label: int) -> bool:
        return any(e.label == label and e.start < segment + 1 - 1e-6 and e.end > segment + 1e-6 for e in events)

    cells = [(segment, label) for segment in range(4) for label in range(2)]
    pairs = [(is_active(reference, *cell), is_active(estimated, *cell)) for cell in cells]
    expected = DetectionCounts(pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)))
    assert count_segments(reference, estimated, duration=4.0, segment_seconds=1.0) == expected


def test_the_f_measure_is_the_harmonic_mean_of_precision_and_recall() -> None:
    counts = DetectionCounts(2, 1, 0) + DetectionCounts(1, 1, 2)
    precision, recall = 3 / 5, 3 / 5
    assert counts.f_measure == pytest.approx(2 * precision * recall / (precision + recall))
    assert counts.f_measure == counts.numerator / counts.denominator
    assert DetectionCounts().f_measure == 0.0

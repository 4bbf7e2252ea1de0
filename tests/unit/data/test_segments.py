from __future__ import annotations

import numpy as np
import pytest

from spear_plugin.data.segments import FrameClock, common_grid, cut_segments


def cut_one_by_one(lengths: list[int], minimum: int, maximum: int, grid: int) -> list[tuple[int, int, int]]:
    """Cut with plain loops."""
    segments = []

    for row, length in enumerate(lengths):
        step = length if length <= maximum else maximum // grid * grid
        starts = range(0, length, max(step, 1))
        segments += [(row, start, min(step, length - start)) for start in starts]

    return [segment for segment in segments if segment[2] >= minimum]


def test_segments_equal_those_of_plain_loops() -> None:
    lengths = np.random.default_rng(0).integers(0, 4000, 500)

    for minimum, maximum, grid in [(100, 1000, 64), (1, 640, 640), (300, 999, 1)]:
        table = cut_segments(lengths, min_length=minimum, max_length=maximum, grid=grid)
        found = list(zip(table.rows.tolist(), table.starts.tolist(), table.lengths.tolist(), strict=True))

        assert found == cut_one_by_one(lengths.tolist(), minimum, maximum, grid)
        assert not np.any(table.starts % grid)


def test_only_rows_and_ends_below_the_minimum_are_lost_and_counted() -> None:
    table = cut_segments(np.array([99, 100, 1000, 1050, 2500]), min_length=100, max_length=1000, grid=10)

    assert (table.num_short_rows, table.num_short_tails) == (1, 1)
    assert table.lengths.sum() == 99 + 100 + 1000 + 1050 + 2500 - 99 - 50


@pytest.mark.parametrize(("rate", "frames"), [(50.0, 499), (25.0, 249), (12.5, 124), (100 / 3, 332), (75.0, 748)])
def test_frames_are_the_whole_part_of_duration_times_rate(rate: float, frames: int) -> None:
    clock = FrameClock.of(rate, 16_000)

    assert clock.num_frames(round(9.98 * 16_000)) == frames
    assert clock.num_frames(clock.grid) * 16_000 == pytest.approx(clock.grid * rate, rel=1e-3)


def test_the_common_grid_is_a_whole_number_of_frames_of_all_streams() -> None:
    assert common_grid([FrameClock.of(50.0, 16_000), FrameClock.of(25.0, 16_000)]) == 640
    assert common_grid([]) == 1

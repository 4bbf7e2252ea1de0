from __future__ import annotations

import pytest
import torch
from torch.nn import ModuleList

from spear_plugin.nn.schedules import Schedule, as_schedule, draw_uniform, set_batch_count


def test_a_schedule_is_linear_between_points_and_constant_outside() -> None:
    schedule = Schedule((100.0, 0.5), (300.0, 0.1), (400.0, 0.2))
    values = [schedule.at(count) for count in (0.0, 100.0, 200.0, 300.0, 350.0, 400.0, 1e9)]
    assert values == pytest.approx([0.5, 0.5, 0.3, 0.1, 0.15, 0.2, 0.2])


def test_the_default_holds_in_evaluation_and_until_somebody_says_how_far_training_is() -> None:
    schedule = Schedule((0.0, 0.5), (10.0, 0.1), default=0.7)
    assert schedule.value == 0.7
    schedule.batch_count = 0.0
    assert schedule.value == 0.5
    assert schedule.eval().value == 0.7


def test_the_batch_count_reaches_every_schedule_of_a_model_and_can_be_taken_back() -> None:
    schedules = [Schedule((0.0, 0.0), (10.0, 1.0), default=9.0) for _ in range(3)]
    model = ModuleList([schedules[0], ModuleList(schedules[1:])])
    set_batch_count(model, 5.0)
    assert [schedule.value for schedule in schedules] == [0.5] * 3
    set_batch_count(model, None)
    assert [schedule.value for schedule in schedules] == [9.0] * 3
    assert not model.state_dict()


def test_a_number_is_a_schedule_that_never_changes() -> None:
    schedule = as_schedule(0.3)
    schedule.batch_count = 1e6
    assert schedule.value == schedule.eval().value == 0.3
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize("points", [(), ((0.0, 1.0), (0.0, 2.0)), ((5.0, 1.0), (3.0, 1.0))])
def test_points_must_rise(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="must be in rising order of the batch count"):
        Schedule(*points)


def test_host_draws_repeat_with_torchs_seed() -> None:
    torch.manual_seed(3)
    first = [draw_uniform() for _ in range(5)]
    torch.manual_seed(3)
    assert first == [draw_uniform() for _ in range(5)]
    assert all(0.0 <= u < 1.0 for u in first)

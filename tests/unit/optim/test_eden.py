from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from spear_plugin.optim import EdenLR


def create_eden(**options: float) -> EdenLR:
    return EdenLR(torch.optim.SGD([Parameter(torch.ones(2))], lr=2.0), **options)  # type: ignore[arg-type]


def rate_of_step(step: int, scheduler: EdenLR) -> float:
    while scheduler.last_epoch + 1 < step:
        scheduler.optimizer.step()
        scheduler.step()
    return float(scheduler.get_last_lr()[0])


def test_the_first_step_is_number_one_of_the_warm_up() -> None:
    scheduler = create_eden(num_warmup_steps=10, warmup_start=0.5, decay_steps=1e9)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * 0.55)
    assert rate_of_step(9, scheduler) == pytest.approx(2.0 * 0.95)
    assert rate_of_step(10, scheduler) == pytest.approx(2.0)


def test_without_warm_up_the_first_step_has_the_base_rate() -> None:
    assert rate_of_step(1, create_eden(num_warmup_steps=0, decay_steps=1e9)) == pytest.approx(2.0)


def test_steps_and_hours_each_take_sixteen_percent_at_their_mark() -> None:
    steps_alone = create_eden(decay_steps=20, num_warmup_steps=0, decay_hours=1.0)
    assert rate_of_step(20, steps_alone) == pytest.approx(2.0 * 0.5**0.25)
    both = create_eden(decay_steps=20, num_warmup_steps=0, decay_hours=5.0, hours_per_step=0.25)
    assert rate_of_step(20, both) == pytest.approx(2.0 * 0.5**0.5)


def test_a_loaded_schedule_goes_on() -> None:
    options = {"decay_steps": 5.0, "num_warmup_steps": 3, "decay_hours": 2.0, "hours_per_step": 0.5}
    scheduler, again = create_eden(**options), create_eden(**options)
    rate_of_step(7, scheduler)
    again.load_state_dict(scheduler.state_dict())
    assert again.get_last_lr() == scheduler.get_last_lr()
    assert rate_of_step(12, again) == rate_of_step(12, scheduler)


def test_hours_go_on_when_steps_become_longer() -> None:
    """The same hours after 8 short steps as after 4 long ones; the steps are counted on."""
    options = {"decay_steps": 1e9, "num_warmup_steps": 0, "decay_hours": 2.0}
    short, long = (create_eden(**options, hours_per_step=hours) for hours in (0.25, 0.5))
    rate_of_step(9, short)
    long.load_state_dict(short.state_dict())
    assert rate_of_step(13, long) == pytest.approx(rate_of_step(18, short))
    again = create_eden(**options, hours_per_step=0.25)
    again.load_state_dict(long.state_dict())
    assert rate_of_step(15, again) == pytest.approx(rate_of_step(19, short))

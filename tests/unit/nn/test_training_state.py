from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import Module, ModuleList

from spear_plugin.nn.regularizers import Whiten
from spear_plugin.nn.schedules import Schedule
from spear_plugin.nn.training_state import TrainingState
from tests.common import assert_equal


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule((0.0, 0.0), (100.0, 1.0), default=9.0)
        self.whiteners = ModuleList([Whiten(limit=1e6, grad_scale=0.1, mode="forced") for _ in range(2)])
        self.training_state = TrainingState(2)

    def step(self) -> None:
        """Let the second whitener see values below its limit."""
        self.training_state.prepare(self)
        self.whiteners[1](torch.randn(8, 4, requires_grad=True)).sum().backward()


def test_a_new_model_does_not_know_how_far_training_is() -> None:
    model = Model()
    model.step()
    assert model.schedule.value == 9.0
    model.training_state.set_batch_count(model, 50.0)
    assert model.schedule.value == 0.5
    model.training_state.set_batch_count(model, None)
    assert model.schedule.value == 9.0


def test_whiteners_write_what_they_see_into_the_state() -> None:
    model = Model()
    model.step()
    assert model.training_state.is_white.tolist() == [0, 1]


@pytest.mark.parametrize("how", ["copied in place", "loaded", "assigned"])
def test_a_loaded_model_goes_on_where_the_saved_one_was(how: str) -> None:
    model = Model()
    model.step()
    # A number that float32 rounds
    model.training_state.set_batch_count(model, 100.0 / 3.0)

    loaded = Model()
    loaded.training_state.prepare(loaded)
    loaded.training_state.set_batch_count(loaded, 1.0)
    if how == "copied in place":
        for key, value in loaded.state_dict(keep_vars=True).items():
            value.copy_(model.state_dict()[key])
    else:
        # What is assigned is another tensor, of which the whiteners have to hear.
        loaded.load_state_dict(copy.deepcopy(model.state_dict()), assign=how == "assigned")
    loaded.training_state.prepare(loaded)

    assert loaded.schedule.value == model.schedule.value
    assert [int(whitener.is_white) for whitener in loaded.whiteners] == [0, 1]  # type: ignore[arg-type]


def test_a_copied_or_converted_model_has_a_state_of_its_own() -> None:
    model = Model()
    model.training_state.set_batch_count(model, 50.0)
    model.training_state.prepare(model)
    for other in (copy.deepcopy(model), copy.deepcopy(model).to(torch.bfloat16)):
        other.training_state.prepare(other)
        assert other.schedule.value == 0.5
        other.step()
        assert other.training_state.is_white.tolist() == [0, 1]
    assert_equal(model.training_state.is_white, torch.zeros(2, dtype=torch.uint8))


def test_a_negative_batch_count_is_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="`batch_count` must not be negative, but is -2"):
        model.training_state.set_batch_count(model, -2.0)

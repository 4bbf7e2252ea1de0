from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.error import NotSupportedError
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Conv2d, Parameter

from spear_plugin.optim import ScaledAdam, ScaledAdamOptions, stack
from tests.common import assert_close, assert_equal

SHAPES = [(4, 3), (5,), (4, 3), (), (2, 3, 2), (4, 3), (1,), (5,), ()]

# Medians and changes of size come often enough to matter in a short run.
OPTIONS = ScaledAdamOptions(clipping_update_period=8, size_update_period=2)


def create_params(shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(0.3 * torch.randn(shape, generator=generator)) for shape in shapes]


def set_grads(params: Sequence[Tensor], step: int) -> None:
    """Set gradients that depend on the step alone, with a spike now and then for the clipping."""
    generator = torch.Generator().manual_seed(1000 + step)
    scale = 30.0 if step % 5 == 4 else 1.0
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator)


def run(optimizer: ScaledAdam, params: Sequence[Tensor], steps: range) -> None:
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def save_and_load(state: dict[str, Any]) -> dict[str, Any]:
    """Pass a state through a file, as the checkpoint manager does."""
    file = io.BytesIO()
    torch.save(copy.deepcopy(state), file, pickle_protocol=5)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    return loaded


@pytest.mark.parametrize("num_steps", [1, 9, 14])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(num_steps: int) -> None:
    params = create_params()
    run(ScaledAdam(params, OPTIONS), params, range(30))

    stopped = create_params()
    optimizer = ScaledAdam(stopped, OPTIONS)
    run(optimizer, stopped, range(num_steps))
    state = save_and_load(optimizer.state_dict())
    resumed = [Parameter(param.detach().clone()) for param in stopped]
    optimizer = ScaledAdam(resumed, OPTIONS)
    optimizer.load_state_dict(state)
    run(optimizer, resumed, range(num_steps, 30))
    for actual, expected in zip(resumed, params, strict=True):
        assert_equal(actual, expected)


def test_a_state_is_a_snapshot_once_copied_and_loading_it_rewinds() -> None:
    params = create_params()
    optimizer = ScaledAdam(params, OPTIONS)
    run(optimizer, params, range(10))
    state, values = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in params]
    run(optimizer, params, range(10, 20))
    expected = [param.detach().clone() for param in params]
    optimizer.load_state_dict(state)
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
    run(optimizer, params, range(10, 20))
    for actual, wanted in zip(params, expected, strict=True):
        assert_equal(actual, wanted)


def test_the_state_has_these_entries() -> None:
    params = create_params()
    optimizer = ScaledAdam(params, OPTIONS)
    run(optimizer, params, range(3))
    state = optimizer.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state["state"][0].items()}
    assert shapes == {
        "delta": (4, 3),
        "exp_avg_sq": (4, 3),
        "rms": (),
        "scale_grads": (2,),
        "scale_exp_avg_sq": (),
    }
    assert state["state"][3].keys() == {"delta", "exp_avg_sq"}
    (group,) = state["param_groups"]
    assert group["step"] == 3
    assert group["grad_norms"].shape == (8,)
    assert group["clipping_threshold"].shape == ()


def test_a_state_of_another_optimizer_raises_an_error() -> None:
    params = create_params()
    state = torch.optim.AdamW(params).state_dict()
    with pytest.raises(ValueError, match=r"must be a state of ScaledAdam, but has no clipping_scale"):
        ScaledAdam(params).load_state_dict(state)


def test_tensors_stacked_by_shape_move_as_each_alone() -> None:
    # Not clipped, since alone each has a norm of its own.
    options = ScaledAdamOptions(clipping_scale=None, size_update_period=2)
    params, alone = create_params(), create_params()
    stacked = ScaledAdam(params, options)
    single = [ScaledAdam([param], options) for param in alone]
    for step in range(12):
        set_grads(params, step)
        set_grads(alone, step)
        stacked.step()
        for optimizer in single:
            optimizer.step()
    for actual, expected in zip(params, alone, strict=True):
        assert_close(actual, expected, atol=0.0, rtol=1e-6)


def test_the_size_of_stacks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    params = create_params()
    run(ScaledAdam(params, OPTIONS), params, range(20))
    monkeypatch.setattr(stack, "MAX_BLOCK_ELEMENTS", 5)
    again = create_params()
    run(ScaledAdam(again, OPTIONS), again, range(20))
    for actual, expected in zip(again, params, strict=True):
        assert_close(actual, expected, atol=0.0, rtol=1e-5)


def test_the_way_of_a_cpu_and_that_of_other_devices_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    params = create_params([*SHAPES, (70, 9)])
    run(ScaledAdam(params, OPTIONS), params, range(20))
    monkeypatch.setattr(stack, "is_readable", lambda _: False)
    again = create_params([*SHAPES, (70, 9)])
    run(ScaledAdam(again, OPTIONS), again, range(20))
    for actual, expected in zip(again, params, strict=True):
        assert_close(actual, expected, atol=1e-7, rtol=1e-5)


def test_a_missing_gradient_is_a_zero_one() -> None:
    params, zeros = create_params(), create_params()
    optimizers = ScaledAdam(params, OPTIONS), ScaledAdam(zeros, OPTIONS)
    for step in range(12):
        set_grads(params, step)
        set_grads(zeros, step)
        for index in (0, 3, step % len(SHAPES)):
            params[index].grad = None
            zeros[index].grad = torch.zeros_like(zeros[index])
        for optimizer in optimizers:
            optimizer.step()
    for actual, expected in zip(params, zeros, strict=True):
        assert_equal(actual, expected)
    assert_equal(params[0], create_params()[0])


def test_no_gradients_at_all_leave_parameters_and_statistics_alone() -> None:
    params = create_params()
    optimizer = ScaledAdam(params, OPTIONS)
    for _ in range(20):
        optimizer.step()
    for actual, expected in zip(params, create_params(), strict=True):
        assert_equal(actual, expected)
    assert not optimizer.param_groups[0]["grad_norms"].any()


def test_scalars_stay_near_their_limit() -> None:
    params = [Parameter(torch.tensor(9.9)), Parameter(torch.tensor([-12.0]))]
    optimizer = ScaledAdam(params, ScaledAdamOptions(lr=1.0, clipping_scale=None))
    for _ in range(50):
        params[0].grad, params[1].grad = torch.tensor(-1.0), torch.tensor([1.0])
        optimizer.step()
    # The last update comes after the limit.
    assert 10.0 < params[0].item() < 10.2
    assert -10.2 < params[1].item() < -10.0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("bad_step", [0, 3, 12, 16])
def test_gradients_that_are_not_finite_count_as_zero_for_all_and_leave_no_trace(value: float, bad_step: int) -> None:
    params, zeros = create_params(), create_params()
    optimizer, reference = ScaledAdam(params, OPTIONS), ScaledAdam(zeros, OPTIONS)
    for step in range(30):
        set_grads(params, step)
        set_grads(zeros, step)
        if step == bad_step:
            assert params[0].grad is not None
            params[0].grad[0, 0] = value
            for param in zeros:
                param.grad = None
        optimizer.step()
        reference.step()
        if step == bad_step:
            for actual, expected in zip(params, zeros, strict=True):
                assert_equal(actual, expected)
    assert all(param.isfinite().all() for param in params)
    assert optimizer.param_groups[0]["clipping_threshold"].isfinite()


def test_frozen_parameters_are_left_alone_and_move_again_once_thawed() -> None:
    params = create_params([(4, 3), (4, 3)])
    with torch.no_grad():
        params[0].fill_(5.0)  # above the largest size: not frozen, it would shrink
    optimizer = ScaledAdam(params, OPTIONS)
    params[0].requires_grad_(False)
    run(optimizer, params[1:], range(6))
    assert_equal(params[0], torch.full((4, 3), 5.0))
    params[0].requires_grad_(True)
    moment = optimizer.state[params[1]]["exp_avg_sq"].clone()
    set_grads(params, 6)
    optimizer.step()
    assert (params[0] != 5.0).all()
    assert (optimizer.state[params[1]]["exp_avg_sq"] > 0.9 * moment).all()


def test_the_memory_layout_of_convolutions_does_not_matter() -> None:
    layers = [Conv2d(3, 4, 2), Conv2d(3, 4, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].weight = Parameter(layers[1].weight.detach().contiguous(memory_format=torch.channels_last))
    for layer in layers:
        params = list(layer.parameters())
        run(ScaledAdam(params, OPTIONS), params, range(6))
    assert_close(layers[1].weight, layers[0].weight, atol=0.0, rtol=1e-6)


def test_a_step_never_reads_a_value_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "is_readable", lambda _: False)
    params = create_params()
    optimizer = ScaledAdam(params, OPTIONS)

    def fail(*args: Any) -> None:
        raise AssertionError(f"waits for the device: {args}")

    for step in range(18):
        set_grads(params, step)
        with monkeypatch.context() as patch:
            for name in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "nonzero"):
                patch.setattr(Tensor, name, fail)
            optimizer.step()


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    params = create_params([(4, 3)])
    optimizer = ScaledAdam(params)

    def closure() -> float:
        loss = params[0].square().sum()
        loss.backward()
        return loss.item()

    before = params[0].square().sum().item()
    assert optimizer.step(closure) == before
    assert params[0].square().sum().item() < before


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    destroy_process_group()


def test_sharded_parameters_raise_an_error(process_group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    sharded = Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Shard(0)]))
    with pytest.raises(NotSupportedError, match=r"Set `trainer.data_parallelism` to 'ddp'"):
        ScaledAdam([sharded])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_raise_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(NotSupportedError, match=rf"found {dtype}\. Set `model.dtype` to 'float32'"):
        ScaledAdam([Parameter(torch.ones(3, dtype=dtype))])


def test_parameters_of_two_types_in_a_group_raise_an_error() -> None:
    with pytest.raises(NotSupportedError, match="one device and of one data type"):
        ScaledAdam([Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.float64))])


def test_an_option_of_a_group_out_of_range_raises_an_error_and_adds_no_group() -> None:
    optimizer = ScaledAdam(create_params([(4, 3)]))
    with pytest.raises(ValueError, match="`lr` must be positive, but is 0"):
        optimizer.add_param_group({"params": create_params([(2,)]), "lr": 0.0})
    assert len(optimizer.param_groups) == 1

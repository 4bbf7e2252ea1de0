"""Two processes with a batch each take the step that one process takes with both batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from fairseq2.gang import ProcessGroupGang
from fairseq2.nn.utils.grad import normalize_grads
from torch import Tensor
from torch.distributed import all_reduce, destroy_process_group, group, init_process_group
from torch.multiprocessing.spawn import spawn
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from spear_plugin.models.spear import SpearModel, create_spear_model
from spear_plugin.models.spear.config import MaskingConfig
from spear_plugin.models.zipformer import plain_regularization
from spear_plugin.optim import ScaledAdam
from tests.common import assert_close
from tests.unit.models.spear.makers import Batch, create_batch, small_config

NUM_PROCESSES = 2
LENGTHS = [16000, 16000, 12000, 12000]
ROWS = ([0, 1], [2, 3])  # of each process, speech and audio
OPTIMIZERS: dict[str, Callable[[Iterable[Parameter]], Optimizer]] = {"scaled_adam": ScaledAdam, "adamw": AdamW}


def create_model() -> SpearModel:
    """Return a model whose utterances know nothing of each other: rules look at a process's whole batch."""
    config = small_config()
    config.reference_padding = False
    config.masking = MaskingConfig(time_probability=0.0, min_time_spans=0, channel_probability=0.0)
    config.zipformer.regularization = plain_regularization()
    config.zipformer.dropout_p = config.zipformer.pos_dropout_p = 0.0
    torch.manual_seed(0)
    return create_spear_model(config)


def select_rows(batch: Batch, rows: list[int]) -> Batch:
    codes = {name: stream[rows] for name, stream in batch.codes.items()}
    return Batch(batch.waveforms[rows], batch.lengths[rows], codes, batch.domains[rows])


def loss_of(model: Module, batch: Batch) -> Tensor:
    loss: Tensor = model(batch.waveforms, batch.lengths, batch.codes, batch.domains).loss
    return loss


def step_in_one_process(name: str, *, accumulate: bool) -> tuple[Tensor, SpearModel]:
    model, batch = create_model(), create_batch(LENGTHS)
    optimizer = OPTIMIZERS[name](model.parameters())
    batches = [select_rows(batch, rows) for rows in ROWS] if accumulate else [batch]
    loss = torch.zeros(())
    for batch in batches:
        batch_loss = loss_of(model, batch)
        batch_loss.backward()
        loss += batch_loss.detach()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad /= len(LENGTHS)
    optimizer.step()
    return loss, model


def step_in_each_process(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_PROCESSES)
    model = create_model()
    with torch.no_grad():
        model.mask_emb.add_(rank)  # which the wrapper has to undo
    wrapper = DistributedDataParallel(model)
    optimizer = OPTIMIZERS[name](wrapper.parameters())
    loss = loss_of(wrapper, select_rows(create_batch(LENGTHS), ROWS[rank]))
    loss.backward()
    assert group.WORLD is not None
    normalize_grads(wrapper, ProcessGroupGang(group.WORLD, torch.device("cpu")), num_targets=len(ROWS[rank]))
    optimizer.step()
    all_reduce(total := loss.detach().clone())
    torch.save(
        {"loss": total, "model": model.state_dict(), "gradients": gradients_of(model)}, f"{folder}/rank_{rank}.pt"
    )
    destroy_process_group()


def gradients_of(model: Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_step(model: SpearModel, gradients: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Assert that both had the same gradients and, where these are more than rounding, took the same step.

    A bias of attention's keys has no gradient in exact arithmetic, and optimizers of Adam's kind make a whole step of
    the sign of what rounding leaves.
    """
    expected_gradients = gradients_of(model)
    assert gradients.keys() == expected_gradients.keys()
    rounding = 1e-6 * max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for key, initial in create_model().state_dict().items():
        step, expected = state[key].float() - initial, model.state_dict()[key].float() - initial
        if key in gradients:
            assert_close(gradients[key], expected_gradients[key], atol=rounding, rtol=1e-3)
            counts = expected_gradients[key].abs() > 10 * rounding
            step, expected = step[counts], expected[counts]
        assert (step - expected).norm() <= 0.02 * expected.norm(), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_batches_are_one_larger_batch(name: str) -> None:
    loss, model = step_in_one_process(name, accumulate=False)
    accumulated_loss, accumulated = step_in_one_process(name, accumulate=True)
    assert_close(accumulated_loss, loss, atol=0.0, rtol=1e-6)
    assert_same_step(model, gradients_of(accumulated), accumulated.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_step_like_one_with_both_batches(tmp_path: Path, name: str) -> None:
    spawn(step_in_each_process, (str(tmp_path), name), nprocs=NUM_PROCESSES)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES))
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])
    loss, model = step_in_one_process(name, accumulate=False)
    assert_close(first["loss"], loss, atol=0.0, rtol=1e-6)
    assert_same_step(model, first["gradients"], first["model"])

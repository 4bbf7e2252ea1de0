"""Two processes with a batch each take the steps that one process takes with both: weights, codebooks and teacher."""

from __future__ import annotations

from pathlib import Path

import fairseq2.recipe.base  # noqa: F401  # which must come before the evaluator that it imports
import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import FakeGang, Gang, ProcessGroupGang
from fairseq2.metrics import MetricBag
from fairseq2.nn.utils.grad import normalize_grads
from torch import Tensor
from torch.distributed import all_reduce, destroy_process_group, group, init_process_group
from torch.multiprocessing.spawn import spawn
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from recipes.spidr.pretrain.metrics import SpidrMetrics
from recipes.spidr.pretrain.unit import SpidrCriterion, SpidrTrainUnit, TeacherUpdater
from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spidr import SpidrModel
from tests.common import assert_close
from tests.unit.models.spidr.makers import create_batch, create_small_model, small_config

NUM_PROCESSES = 2
# Of one length, as those of a batch that is cropped; the last step is after `freeze_step`, 3.
LENGTHS = [16000, 16000, 16000, 16000]
NUM_STEPS = 4
ROWS = ([0, 1], [2, 3])  # of each process


def make_batch(step: int, rows: list[int]) -> SpearBatch:
    batch = create_batch(LENGTHS, seed=step)
    return SpearBatch(
        waveforms=batch.waveforms[rows],
        lengths=batch.lengths[rows],
        seq_lens=[LENGTHS[row] for row in rows],
        codes={},
        domains=torch.zeros(len(rows), dtype=torch.int64),
        ids=[str(row) for row in rows],
        mask=batch.mask[rows],
    )


def train(wrapper: Module, model: SpidrModel, gang: Gang, parts: list[list[int]]) -> list[Tensor]:
    """Take all steps, each with a batch for each of ``parts``, as fairseq2's trainer does; return the summed losses."""
    updater = TeacherUpdater(model, gang)
    metrics = SpidrMetrics(model.config, per_layer=False)
    unit = SpidrTrainUnit(SpidrCriterion(wrapper, metrics), updater)
    unit.prepare_metric_bag(bag := MetricBag(device=CPU))
    optimizer = AdamW(wrapper.parameters(), lr=1e-3, weight_decay=0.1)
    updater.attach(optimizer)
    losses = []
    for step in range(1, NUM_STEPS + 1):
        unit.set_step_nr(step)
        num_targets, total = 0, torch.zeros(())
        for rows in parts:
            loss, num_batch_targets = unit.process_batch(make_batch(step, rows), bag)
            loss.backward()
            num_targets += num_batch_targets
            total += loss.detach()
        normalize_grads(wrapper, gang, num_targets)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return losses


def train_in_each_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_PROCESSES)
    model = create_small_model(small_config())
    wrapper = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    assert group.WORLD is not None
    losses = train(wrapper, model, ProcessGroupGang(group.WORLD, torch.device("cpu")), [ROWS[rank]])
    all_reduce(total := torch.stack(losses))
    torch.save({"losses": total, **model.state_dict()}, f"{folder}/rank_{rank}.pt")
    destroy_process_group()


def train_in_one_process(*, accumulate: bool) -> dict[str, Tensor]:
    model = create_small_model(small_config())
    parts = list(ROWS) if accumulate else [[row for rows in ROWS for row in rows]]
    losses = train(model, model, FakeGang(CPU), parts)
    return {"losses": torch.stack(losses), **model.state_dict()}


def assert_same_training(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    initial = create_small_model(small_config()).state_dict()
    assert actual.keys() == expected.keys()
    assert_close(actual.pop("losses"), expected.pop("losses"), atol=0.0, rtol=1e-5)
    # A label that rounding decides would change a count by one.
    assert_close(actual["codebooks.counts"], expected["codebooks.counts"], atol=1e-5, rtol=0.0)
    assert_close(actual["codebooks.sums"], expected["codebooks.sums"], atol=1e-3, rtol=1e-4)
    for name, start in initial.items():
        # Of Adam's kind: where a gradient is no more than rounding, its sign decides on a whole step.
        step, expected_step = actual[name].float() - start, expected[name].float() - start
        assert (step - expected_step).norm() <= 0.02 * expected_step.norm(), name


def test_accumulated_batches_are_one_larger_batch() -> None:
    assert_same_training(train_in_one_process(accumulate=True), train_in_one_process(accumulate=False))


@pytest.mark.slow
def test_two_processes_train_like_one_with_both_batches(tmp_path: Path) -> None:
    spawn(train_in_each_process, (str(tmp_path),), nprocs=NUM_PROCESSES)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same_training(first, train_in_one_process(accumulate=False))

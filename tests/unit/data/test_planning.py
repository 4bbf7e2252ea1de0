"""Plans: every example once an epoch, in any number of processes, also when that number changes."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spear_plugin.data.grouping import Examples, PlanOptions
from spear_plugin.data.order import SHARDS_AT_ONCE, EndlessOrder
from spear_plugin.data.planning import PlanError, TrainingPlan, ValidationPlan

OPTIONS = PlanOptions(num_processes=2, max_batch_length=1_000_000, num_buckets=3)


@dataclass
class Corpus:
    lengths: NDArray[np.int64]
    weight: float = 1.0
    shards: NDArray[np.uint32] | None = None


@pytest.fixture
def corpora() -> list[Corpus]:
    generator = np.random.default_rng(0)
    return [
        Corpus(generator.integers(16_000, 480_000, 3_000), 0.7),
        Corpus(generator.integers(16_000, 160_000, 1_001), 0.3),
    ]


def read(plan: TrainingPlan, number: int, state: dict[str, Any] | None = None) -> tuple[list[Examples], dict[str, Any]]:
    """Return groups, and the state behind them as a checkpoint would give it back."""
    position = plan.begin() if state is None else plan.from_state(state)
    groups = []
    for behind, group in islice(plan.groups_from(position), number):
        position = behind
        groups.append(group)
    file = io.BytesIO()
    torch.save(plan.to_state(position), file)
    file.seek(0)
    return groups, torch.load(file, weights_only=True)


def count(groups: list[Examples]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(example) for group in groups for example in group.tolist())


def test_with_shards_only_a_few_of_them_are_read_at_a_time() -> None:
    shards = np.repeat(np.arange(64, dtype=np.uint32), 50)
    order = EndlessOrder(shards.size, 2, 0, shards)

    segments, epochs = order.take(0, 2 * shards.size)

    for epoch in (0, 1):
        of_epoch = segments[epochs == epoch]
        assert sorted(of_epoch) == list(range(shards.size))
        blocks = [set(shards[part].tolist()) for part in np.split(of_epoch, 64 // SHARDS_AT_ONCE)]
        assert [len(block) for block in blocks] == [SHARDS_AT_ONCE] * (64 // SHARDS_AT_ONCE)
        # Shuffled among all of these shards, not one after the other.
        assert len(set(shards[of_epoch[:50]].tolist())) > SHARDS_AT_ONCE // 2

    assert (segments[: shards.size] != segments[shards.size :]).any()
    assert (EndlessOrder(shards.size, 2, 0, shards).take(100, 70)[0] == segments[100:170]).all()


def test_a_run_goes_on_in_the_middle_of_a_shard(corpora: list[Corpus]) -> None:
    corpora[0].shards = np.arange(3_000, dtype=np.uint32) // 100
    whole, _ = read(TrainingPlan(corpora, OPTIONS), 300)
    first, state = read(TrainingPlan(corpora, OPTIONS), 123)
    second, _ = read(TrainingPlan(corpora, OPTIONS), 177, state)

    assert all((one == other).all() for one, other in zip(whole, first + second, strict=True))

    corpora[0].shards = np.arange(3_000, dtype=np.uint32) // 50

    with pytest.raises(PlanError, match="are not those of the checkpoint"):
        TrainingPlan(corpora, OPTIONS).from_state(state)


def test_each_epoch_has_every_example_once(corpora: list[Corpus]) -> None:
    plan = TrainingPlan(corpora[:1], OPTIONS)
    groups, state = read(plan, 2_000)
    counts = count(groups)
    carried = {tuple(example) for example in state["carried"].tolist()}

    assert set(counts.values()) == {1}
    assert len(counts) > 6_000
    # Of the first two epochs, what is missing was left over by a window.
    assert {(0, segment, epoch) for segment in range(3_000) for epoch in (0, 1)} - counts.keys() <= carried
    orders = [[example[1] for group in groups for example in group.tolist() if example[2] == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_nothing_is_left_over_for_long(corpora: list[Corpus]) -> None:
    # With many processes up to 30 examples at one end of the lengths remain; the next window begins at that end.
    options = replace(OPTIONS, num_processes=31)
    groups, _ = read(TrainingPlan(corpora[:1], options), 400)
    epochs = [[example[2] for example in group.tolist()] for group in groups]

    assert max(map(max, epochs)) >= 3
    assert max(max(later) - min(later) for later in epochs) <= 1


def test_batches_of_a_group_are_alike(corpora: list[Corpus]) -> None:
    lengths = [corpus.lengths for corpus in corpora]
    groups, _ = read(TrainingPlan(corpora, replace(OPTIONS, num_processes=4, num_buckets=20)), 300)
    content, padded, slowest = 0, 0, 0

    for group in groups:
        of_group = np.array([lengths[corpus][segment] for corpus, segment, _ in group.tolist()])
        batches = [of_group[rank::4] for rank in range(4)]
        sizes = [batch.size * int(np.max(batch)) for batch in batches]
        assert max(sizes) <= 1_000_000
        content, padded, slowest = content + int(of_group.sum()), padded + sum(sizes), slowest + 4 * max(sizes)

    assert content / padded > 0.9
    assert padded / slowest > 0.97


def test_corpora_are_drawn_by_weight(corpora: list[Corpus]) -> None:
    counts = count(read(TrainingPlan(corpora, OPTIONS), 2_000)[0])
    share = sum(number for example, number in counts.items() if example[0] == 1) / counts.total()

    assert share == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("number", [0, 1, 7, 100, 333])
def test_a_plan_goes_on_where_it_was(corpora: list[Corpus], number: int) -> None:
    groups, _ = read(TrainingPlan(corpora, OPTIONS), number + 200)
    _, state = read(TrainingPlan(corpora, OPTIONS), number)
    resumed, _ = read(TrainingPlan(corpora, OPTIONS), 200, state)

    assert all(np.array_equal(a, b) for a, b in zip(resumed, groups[number:], strict=True))


def test_the_seed_decides(corpora: list[Corpus]) -> None:
    first, again, other = (
        read(TrainingPlan(corpora, replace(OPTIONS, seed=seed)), 20)[0][0].tolist() for seed in (2, 2, 3)
    )

    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "change",
    [{"num_processes": 1}, {"num_processes": 5}, {"max_batch_length": 600_000}, {"num_buckets": 20}],
    ids=str,
)
def test_with_other_processes_or_batches_nothing_is_repeated_or_lost(
    corpora: list[Corpus], change: dict[str, int]
) -> None:
    before, state = read(TrainingPlan(corpora, OPTIONS), 45)
    other = TrainingPlan(corpora, replace(OPTIONS, **change))
    between, state = read(other, 33, state)
    after, state = read(TrainingPlan(corpora, OPTIONS), 60, state)
    counts = count(before + between + after)

    assert set(counts.values()) == {1}
    # All that was drawn has been read, is in the rest of the window, or is carried to the next.
    plan = TrainingPlan(corpora, OPTIONS)
    position = plan.from_state(state)
    window, following = plan._open_window(position.window)
    counts += count(window[position.num_groups :]) + count([following.carried])
    assert set(counts.values()) == {1}
    assert counts.total() == sum(following.drawn)


def test_with_other_weights_nothing_is_repeated_or_lost(corpora: list[Corpus]) -> None:
    before, state = read(TrainingPlan(corpora, OPTIONS), 45)
    after, _ = read(TrainingPlan([corpora[0], replace(corpora[1], weight=3.0)], OPTIONS), 400, state)

    assert set(count(before + after).values()) == {1}
    assert np.mean([example[0] for group in after for example in group]) > 0.6


def test_a_state_of_other_corpora_is_refused_in_one_line(corpora: list[Corpus]) -> None:
    _, state = read(TrainingPlan(corpora, OPTIONS), 5)
    longer = replace(corpora[0], lengths=corpora[0].lengths + 1)

    for others in ([corpora[0]], [longer, corpora[1]]):
        with pytest.raises(PlanError, match=r"training corpora are not those of the checkpoint.*manifests") as info:
            TrainingPlan(others, OPTIONS).from_state(state)
        assert "\n" not in str(info.value)


def test_the_seed_cannot_change_within_a_run(corpora: list[Corpus]) -> None:
    _, state = read(TrainingPlan(corpora, OPTIONS), 5)

    with pytest.raises(PlanError, match=r"The seed of the checkpoint's data is 2, but it is 7"):
        TrainingPlan(corpora, replace(OPTIONS, seed=7)).from_state(state)


def test_a_state_is_small(corpora: list[Corpus]) -> None:
    large = [replace(corpora[0], lengths=np.random.default_rng(0).integers(16_000, 480_000, 300_000))]
    _, state = read(TrainingPlan(large, OPTIONS), 50)
    file = io.BytesIO()
    torch.save(state, file)

    assert len(file.getvalue()) < 10_000


@pytest.mark.parametrize("num_processes", [1, 3, 8])
def test_validation_has_each_example_once(corpora: list[Corpus], num_processes: int) -> None:
    plan = ValidationPlan(corpora, replace(OPTIONS, num_processes=num_processes))
    groups = [group for _, group in plan.groups_from(plan.begin())]
    counts = count(groups)

    assert set(counts.values()) == {1}
    assert len(counts) == 4_001
    assert all(len(group) % num_processes == 0 for group in groups[:-1])
    assert [len(group) for _, group in plan.groups_from(len(groups) - 2)] == [len(group) for group in groups[-2:]]

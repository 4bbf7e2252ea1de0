from __future__ import annotations

import numpy as np
import pytest

from spear_plugin.data.grouping import PlanOptions, bucket_edges, cut_groups, lengths_of


def test_buckets_hold_about_equal_audio() -> None:
    lengths = np.random.default_rng(0).integers(16_000, 480_000, 20_000)
    edges = bucket_edges(lengths, 10)
    amounts = np.bincount(np.searchsorted(edges, lengths), lengths)

    assert edges.tolist() == sorted(set(edges.tolist()))
    assert edges[-1] == np.max(lengths)
    assert np.max(amounts) / np.min(amounts) < 1.02


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize(("num_processes", "max_growth"), [(1, 0), (3, 0), (3, 32_000)])
def test_groups_are_as_large_as_their_batches_may_be(num_processes: int, max_growth: int, falling: bool) -> None:
    lengths = np.sort(np.random.default_rng(0).integers(16_000, 480_000, 1_000))[:: -1 if falling else 1]
    examples = np.stack([np.zeros(1_000), np.arange(1_000), np.zeros(1_000)], axis=1).astype(np.int64)
    options = PlanOptions(num_processes=num_processes, max_batch_length=1_000_000, max_growth=max_growth)
    groups, rest = cut_groups(examples, lengths, options)

    assert np.array_equal(np.concatenate([*groups, rest]), examples)
    assert len(rest) < num_processes

    for number, group in enumerate(groups):
        of_group = lengths[group[:, 1]]
        num_examples = len(group) // num_processes
        assert len(group) == num_examples * num_processes
        assert num_examples == 1 or num_examples * (np.max(of_group) + max_growth) <= 1_000_000

        if number < len(groups) - 1:
            # One more for each process would be too much.
            following = lengths[group[-1, 1] + 1 :][:num_processes]
            longest = max(np.max(of_group), np.max(following))
            assert (num_examples + 1) * (longest + max_growth) > 1_000_000


def test_an_example_alone_in_its_batch_may_be_as_long_as_allowed() -> None:
    examples = np.array([[0, 0, 0], [0, 1, 0]])
    options = PlanOptions(num_processes=1, max_batch_length=480_000, max_growth=32_000)
    groups, rest = cut_groups(examples, np.array([480_000, 480_000]), options)

    assert [group.tolist() for group in groups] == [[[0, 0, 0]], [[0, 1, 0]]]
    assert len(rest) == 0


def test_lengths_are_those_of_each_corpus() -> None:
    examples = np.array([[1, 0, 5], [0, 2, 0], [1, 1, 0]])
    lengths = [np.array([1, 2, 3]), np.array([40, 50])]

    assert lengths_of(examples, lengths).tolist() == [40, 3, 50]

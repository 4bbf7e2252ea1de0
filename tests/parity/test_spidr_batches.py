"""Batches for SpidR beside those of the authors' sampler, for the same lengths and limits.

Ours are other ones: their order follows from (seed, window), so that runs can go on within an epoch and with other
processes. What has to hold is that they waste no more; with more processes a little, since those of a step have like
lengths and theirs have not. The sampler's rule: a batch holds at most so many samples, and cuts recordings to its
shortest.
"""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from spear_plugin.data.grouping import PlanOptions
from spear_plugin.data.planning import TrainingPlan
from tests.common import GOLDEN_FOLDER
from tests.unit.data.test_planning import Corpus

NUM_BUCKETS = 1000
"""Of the preset `base`."""


def useful_share(batches: list[NDArray[np.int64]], limit: int) -> float:
    """Return which share of the batches' limit is left when recordings are cut, given the lengths (E,) of each."""
    assert max(int(lengths.sum()) for lengths in batches) <= limit
    kept = [lengths.size * int(np.min(lengths)) for lengths in batches]
    return sum(kept) / len(kept) / limit


@pytest.mark.parametrize(("num_processes", "allowed_loss"), [(1, 0.0), (2, 0.0), (3, 0.01)])
def test_batches_hold_as_much_audio_as_the_authors(num_processes: int, allowed_loss: float) -> None:
    golden = json.loads((GOLDEN_FOLDER / "spidr" / "bucketing.json").read_text())
    limit, longest = golden["kwargs"]["max_token_count"], golden["kwargs"]["max_len"]
    lengths = np.array(golden["lengths"]).clip(max=longest)
    theirs = useful_share([lengths[batch] for batch in golden["cases"]["uniform_shuffle"]["epoch0"]], limit)
    options = PlanOptions(num_processes=num_processes, max_batch_length=limit, num_buckets=NUM_BUCKETS, seed=0)
    plan = TrainingPlan([Corpus(lengths)], options)
    groups = [examples[:, 1] for _, examples in islice(plan.groups_from(plan.begin()), 700 // num_processes)]
    ours = useful_share(
        [lengths[group[rank::num_processes]] for group in groups for rank in range(num_processes)], limit
    )
    assert ours >= theirs - allowed_loss

from __future__ import annotations

import math

import pytest
import torch

from recipes.metrics import CodebookPerplexity, CodebookUsage
from spear_plugin.evaluation import codebook_perplexity, codebook_usage

EVEN, ONE_ENTRY, NONE = [5, 5, 5, 5], [0, 9, 0, 0], [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "perplexity", "usage"),
    [
        ([EVEN], 4.0, 1.0),
        ([ONE_ENTRY], 1.0, 0.25),
        ([EVEN, ONE_ENTRY], 2.5, 0.625),
        ([EVEN, NONE], 4.0, 0.5),
        ([NONE], 0.0, 0.0),
        ([[3, 1, 0, 0]], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), 0.5),
    ],
)
def test_perplexity_and_usage_of_counts(counts: list[list[int]], perplexity: float, usage: float) -> None:
    assert codebook_perplexity(torch.tensor(counts)).item() == pytest.approx(perplexity)
    assert codebook_usage(torch.tensor(counts)).item() == pytest.approx(usage)


def test_metrics_see_the_counts_of_all_batches_and_processes() -> None:
    perplexity, usage, other = CodebookPerplexity(1, 4), CodebookUsage(1, 4), CodebookPerplexity(1, 4)
    for counts in ([5, 0, 0, 0], [0, 5, 0, 0]):
        perplexity.update(torch.tensor([counts]))
        usage.update(torch.tensor([counts]))
    assert perplexity.compute().item() == pytest.approx(2.0)
    assert usage.compute().item() == 0.5
    other.update(torch.tensor([[0, 0, 5, 5]]))
    assert perplexity.merge_state([other]).compute().item() == pytest.approx(4.0)
    assert perplexity.reset().compute().item() == 0.0

"""The reference is a loop over rows after the sampling rule; it is itself checked against golden masks."""

from __future__ import annotations

import json
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear_plugin.nn.masking import compute_channel_mask, compute_span_mask
from tests.common import GOLDEN_FOLDER, load_golden

GOLDEN: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spear" / "modules.json").read_text())["masking"]


def draw_reference(
    rng: np.random.Generator, size: int, probability: float, span: int, min_masks: int
) -> NDArray[np.bool_]:
    num_spans = min(max(min_masks, int(probability * size / span + rng.random())), size // span)
    num_starts = size - span if size - span > num_spans else num_spans + 1
    mask = np.zeros(size, dtype=bool)
    for start in rng.choice(num_starts, num_spans, replace=False):
        mask[start : start + span] = True
    return mask


def run_lengths(mask: Tensor) -> list[int]:
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
    return [int(e) - int(s) for s, e in zip((edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1], strict=True)]


def draw(num_rows: int, size: int, probability: float, span: int, min_masks: int) -> Tensor:
    lengths = torch.full((num_rows,), size)
    return compute_span_mask(lengths, size, probability=probability, span=span, min_masks=min_masks)


def test_reference_of_these_tests_equals_the_golden_masks() -> None:
    golden = load_golden("spear/modules")
    for i, case in enumerate(GOLDEN["exact"]):
        rng = np.random.default_rng(case["numpy_seed"])
        mask = draw_reference(rng, case["size"], case["prob"], case["length"], case["min_masks"])
        assert mask.tolist() == golden[f"mask_exact.{i}"].tolist()


@pytest.mark.parametrize("name", ["time_0.5_10", "time_0.65_10", "channel_0.25_15", "channel_0.25_20"])
def test_statistics_agree_with_the_golden_draws(name: str) -> None:
    golden = GOLDEN[name]
    torch.manual_seed(0)
    mask = draw(4000, golden["size"], golden["prob"], golden["length"], golden["min_masks"])

    def assert_same_mean(values: Tensor, mean: float, std: float) -> None:
        # The golden mean of 500 draws has the larger standard error.
        assert abs(values.double().mean().item() - mean) < 4 * std / 500**0.5

    runs = torch.nn.functional.pad(mask.int(), (1, 0)).diff(dim=1).eq(1).sum(dim=1)
    assert_same_mean(mask.double().mean(dim=1), golden["fraction_mean"], golden["fraction_std"])
    assert_same_mean(runs, golden["runs_per_sequence_mean"], golden["runs_per_sequence_std"])

    lengths = torch.tensor(run_lengths(mask), dtype=torch.float64)
    histogram = {int(k): v for k, v in golden["run_length_histogram"].items()}
    total = sum(histogram.values())
    for length in (golden["length"], golden["length"] + 1, 2 * golden["length"]):
        expected = histogram.get(length, 0) / total
        error = (expected * (1 - expected) / total) ** 0.5
        assert abs((lengths == length).double().mean().item() - expected) < 5 * error + 1e-3
    assert lengths.min().item() == golden["length"]


@pytest.mark.parametrize(
    ("size", "probability", "span", "min_masks"),
    [(11, 0.65, 10, 2), (20, 0.65, 10, 2), (35, 0.65, 10, 2), (9, 0.7, 3, 0)],
)
def test_position_probabilities_agree_with_the_reference(
    size: int, probability: float, span: int, min_masks: int
) -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    expected = np.mean([draw_reference(rng, size, probability, span, min_masks) for _ in range(4000)], axis=0)
    mask = draw(40000, size, probability, span, min_masks)
    np.testing.assert_allclose(mask.double().mean(dim=0), expected, atol=5 * 0.5 / 4000**0.5)


def test_every_mask_of_a_tiny_case_has_its_exact_probability() -> None:
    # 7 frames, spans of 2, p = 0.8: n = floor(2.8 + U) is 2 in 20 % and 3 in 80 %; starts from {0, ..., 4}.
    expected: dict[int, float] = {}
    for num_spans, share in ((2, 0.2), (3, 0.8)):
        for starts in combinations(range(5), num_spans):
            bits = 0
            for start in starts:
                bits |= 0b11 << start
            expected[bits] = expected.get(bits, 0.0) + share / comb(5, num_spans)
    torch.manual_seed(2)
    num_rows = 100_000
    observed = (draw(num_rows, 7, 0.8, 2, 0).long() << torch.arange(7)).sum(dim=1)
    counts = torch.bincount(observed, minlength=128)
    assert {int(i) for i in counts.nonzero()} == set(expected)
    chi_square = sum((counts[k].item() - num_rows * p) ** 2 / (num_rows * p) for k, p in expected.items())
    assert chi_square < len(expected) - 1 + 5 * (2 * (len(expected) - 1)) ** 0.5


def test_rows_of_a_batch_follow_their_own_lengths() -> None:
    torch.manual_seed(3)
    lengths = torch.tensor([1000, 400, 35] * 300)
    mask = compute_span_mask(lengths, 1000, probability=0.65, span=10, min_masks=2)
    beyond = torch.arange(1000) >= lengths[:, None]
    assert not mask[beyond].any()
    for i, size in enumerate((1000, 400, 35)):
        alone = draw(4000, size, 0.65, 10, 2).sum(dim=1).double()
        together = mask[i::3].sum(dim=1).double()
        assert abs(alone.mean() - together.mean()) < 5 * together.std() / 300**0.5


@pytest.mark.parametrize("size", range(13))
def test_short_sequences_are_never_masked_entirely(size: int) -> None:
    torch.manual_seed(4)
    lengths = torch.full((500,), size)
    mask = compute_span_mask(lengths, 40, probability=0.65, span=10, min_masks=2)
    num_masked = mask.sum(dim=1)
    assert num_masked.unique().tolist() == ([0] if size <= 10 else [10])


def test_full_probability_leaves_a_frame_unmasked() -> None:
    torch.manual_seed(5)
    lengths = torch.tensor([4, 5, 8] * 200)
    mask = compute_span_mask(lengths, 8, probability=1.0, span=1)
    assert (mask.sum(dim=1) == lengths - 1).all()


def test_draws_repeat_with_the_global_seed() -> None:
    torch.manual_seed(6)
    first = draw(4, 200, 0.65, 10, 2)
    second = draw(4, 200, 0.65, 10, 2)
    torch.manual_seed(6)
    assert torch.equal(first, draw(4, 200, 0.65, 10, 2))
    assert not torch.equal(first, second)


def test_channel_mask_covers_each_row_on_its_own() -> None:
    torch.manual_seed(7)
    mask = compute_channel_mask(64, 128, probability=0.25, span=20, device=torch.device("cpu"))
    assert mask.shape == (64, 128)
    assert len({tuple(row) for row in mask.tolist()}) > 32

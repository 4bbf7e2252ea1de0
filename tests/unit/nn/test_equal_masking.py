"""Masks of SpidR: the statistics of the authors' draws, and what must hold for every draw."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from spear_plugin.nn.masking import SpanLaw, compute_equal_span_mask
from tests.common import GOLDEN_FOLDER, assert_equal

STATISTICS: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spidr" / "results.json").read_text())["mask_stats"]


def draw(lengths: list[int], *, seed: int = 0, law: SpanLaw = "static", spread: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return compute_equal_span_mask(
        lengths,
        max(lengths),
        probability=0.8,
        span=10,
        min_masks=2,
        law=law,
        spread=spread,
        generator=generator,
    )


def run_lengths(mask: Tensor) -> Tensor:
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
    return (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]


@pytest.mark.parametrize("num_frames", [249, 499, 999])
def test_statistics_of_single_utterances_are_those_of_the_authors(num_frames: int) -> None:
    expected = STATISTICS[f"T={num_frames},B=1"]
    masks = torch.cat([draw([num_frames], seed=seed) for seed in range(1000)])
    fractions = masks.double().mean(dim=1)
    error = 4 * expected["masked_fraction_std"] * (2 / 1000) ** 0.5
    assert abs(fractions.mean().item() - expected["masked_fraction_mean"]) < error
    assert fractions.std().item() == pytest.approx(expected["masked_fraction_std"], rel=0.1)
    spans = run_lengths(masks)
    assert spans.min() == expected["span_len_min"]
    assert spans.double().mean().item() == pytest.approx(expected["span_len_mean"], rel=0.03)
    assert (spans == 10).double().mean().item() == pytest.approx(expected["frac_spans_len_10"], abs=0.02)


def test_statistics_of_batches_are_those_of_the_authors() -> None:
    expected = STATISTICS["T=499,B=16"]
    masks = torch.cat([draw([499] * 16, seed=seed) for seed in range(100)])
    assert masks.double().mean().item() == pytest.approx(expected["masked_fraction_mean"], abs=0.008)
    num_short = (run_lengths(masks) < 10).sum().item() / len(masks)
    assert num_short == pytest.approx(expected["spans_shorter_than_10_per_row"], rel=0.1)
    uneven = torch.stack([draw([499, 400, 300, 200], seed=seed).sum(dim=1) for seed in range(300)]).double()
    expected = STATISTICS["T=499,B=4,lengths=499/400/300/200"]
    assert uneven.mean(dim=0).tolist() == pytest.approx(expected["masked_frames_per_row_mean"], rel=0.02)


@pytest.mark.parametrize(
    ("law", "spread"), [("static", 0.0), ("uniform", 0.0), ("uniform", 3.0), ("normal", 4.0), ("poisson", 0.0)]
)
@pytest.mark.parametrize("lengths", [[49, 30, 49], [12, 11, 10], [9, 3, 3], [300]])
def test_rows_have_equally_many_masked_frames_and_none_in_padding(
    lengths: list[int], law: SpanLaw, spread: float
) -> None:
    for seed in range(20):
        mask = draw(lengths, seed=seed, law=law, spread=spread)
        assert mask.shape == (len(lengths), max(lengths))
        assert len(set(mask.sum(dim=1).tolist())) == 1
        assert not any(row[length:].any() for row, length in zip(mask, lengths, strict=True))
        if law == "static":
            assert mask.any()
            if lengths == [300]:
                assert not mask[:, -1].any()


def test_the_same_generator_gives_the_same_mask_whatever_else_is_drawn() -> None:
    first = draw([99, 60], seed=3)
    torch.rand(7)
    assert_equal(draw([99, 60], seed=3), first)
    assert not torch.equal(draw([99, 60], seed=4), first)


def test_the_global_generator_is_used_by_default() -> None:
    torch.manual_seed(3)
    mask = compute_equal_span_mask([99, 60], 99, probability=0.8, span=10, min_masks=2)
    assert_equal(mask, draw([99, 60], seed=3))


def test_an_utterance_without_frames_leaves_its_batch_without_masks() -> None:
    assert not draw([0, 20]).any()

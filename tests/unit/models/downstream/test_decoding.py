from __future__ import annotations

import math
from collections import defaultdict
from itertools import product

import pytest
import torch
from torch import Tensor

from spear_plugin.models.downstream import decode_by_prefix_beam, decode_greedily
from spear_plugin.models.downstream.decoding import collapse


def likeliest_tokens(log_probs: Tensor) -> tuple[list[int], float]:
    """Return the tokens with the largest probability, and it, by adding up all paths."""
    probabilities: dict[tuple[int, ...], float] = defaultdict(float)
    for path in product(range(log_probs.size(1)), repeat=log_probs.size(0)):
        total = sum(float(log_probs[frame, token]) for frame, token in enumerate(path))
        probabilities[tuple(collapse(path))] += math.exp(total)
    best = max(probabilities, key=lambda tokens: probabilities[tokens])
    return list(best), probabilities[best]


@pytest.mark.parametrize("seed", range(20))
def test_a_prefix_beam_of_full_size_finds_what_adding_up_all_paths_finds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (1.5 * torch.randn(5, 3, generator=generator)).double().log_softmax(dim=1)
    assert decode_by_prefix_beam(log_probs, beam_size=500) == likeliest_tokens(log_probs)[0]


def test_the_likeliest_tokens_are_often_not_those_of_the_likeliest_path() -> None:
    num_different = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        log_probs = (1.5 * torch.randn(5, 3, generator=generator)).double().log_softmax(dim=1)
        (greedy,) = decode_greedily(log_probs[None], [5])
        num_different += greedy != decode_by_prefix_beam(log_probs, beam_size=500)
    assert 0 < num_different < 20


def test_a_beam_of_one_sums_the_paths_of_its_prefix() -> None:
    # "a" by three paths (aa, a-, -a), 0.64, beats nothing at all, 0.36, whose path is the likeliest.
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert decode_greedily(log_probs[None], [2]) == [[]]
    assert decode_by_prefix_beam(log_probs, beam_size=2) == [1]


def test_repeated_tokens_are_one_unless_a_blank_parts_them() -> None:
    paths = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 0], [0, 2, 1, 1, 1, 1, 1, 1]])
    log_probs = torch.nn.functional.one_hot(paths, 3).double().add(1e-9).log()
    assert decode_greedily(log_probs, [8, 3]) == [[1, 1, 2], [2, 1]]
    assert decode_by_prefix_beam(log_probs[0], beam_size=4) == [1, 1, 2]
    assert decode_by_prefix_beam(log_probs[1, :3], beam_size=4) == [2, 1]


def test_a_narrow_beam_looks_at_as_many_tokens_as_it_is_told() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).repeat(4, 1).log()
    assert 2 not in decode_by_prefix_beam(log_probs, beam_size=50, max_candidates=2)

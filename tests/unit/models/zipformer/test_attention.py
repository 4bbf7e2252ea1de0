from __future__ import annotations

import torch
from torch import Tensor

from spear_plugin.models.zipformer.attention import RelativeAttentionWeights, relative_positions, shift_to_relative
from tests.common import assert_close, assert_equal
from tests.unit.models.zipformer.makers import enlarge_small_parameters


def make_weights() -> RelativeAttentionWeights:
    weights = RelativeAttentionWeights(16, num_heads=3, query_head_dim=8, pos_head_dim=4, pos_dim=12)

    enlarge_small_parameters(weights)

    return weights


def test_shift_picks_the_score_of_each_offset() -> None:
    for num_frames in (1, 2, 7):
        scores = torch.randn(2, num_frames, 2 * num_frames)

        shifted = shift_to_relative(scores)

        for i in range(num_frames):
            for j in range(num_frames):
                assert_equal(shifted[:, i, j], scores[:, i, num_frames - 1 + j - i])

        assert shifted.data_ptr() == scores[0, 0, num_frames - 1 :].data_ptr()


def test_attention_weights_equal_the_formula_computed_one_pair_at_a_time() -> None:
    module = make_weights()

    x = torch.randn(2, 5, 16)

    positions = relative_positions(5, 12)

    queries, keys, pos_queries = (
        torch.unflatten(part, -1, (3, -1)) for part in torch.split(module.in_proj(x), [24, 24, 12], dim=-1)
    )

    scores = torch.empty(3, 2, 5, 5)

    for i in range(5):
        for j in range(5):
            position = torch.unflatten(module.linear_pos(positions[4 + j - i]), -1, (3, -1))

            scores[..., i, j] = ((queries[:, i] * keys[:, j]).sum(-1) + (pos_queries[:, i] * position).sum(-1)).T

    assert_close(module(x, positions, None), scores.softmax(dim=-1))


def test_padded_keys_get_no_weight_and_a_row_of_them_stays_finite() -> None:
    module = make_weights()

    padding_mask = torch.tensor([[False] * 3 + [True] * 2, [True] * 5])

    weights: Tensor = module(torch.randn(2, 5, 16), relative_positions(5, 12), padding_mask)

    assert_equal(weights[:, 0, :, 3:], torch.zeros(3, 5, 2))
    assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))


def test_positions_of_a_shorter_sequence_are_the_middle_of_a_longer_one() -> None:
    assert_equal(relative_positions(50, 12)[43:57], relative_positions(7, 12))


def test_gradients_of_the_attention_weights_are_those_of_finite_differences() -> None:
    module = make_weights().double()

    positions = relative_positions(4, 12).double()
    padding_mask = torch.tensor([[False] * 4, [False, False, False, True]])

    x = torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: module(x, positions, padding_mask), x)

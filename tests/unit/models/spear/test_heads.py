from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from spear_plugin.models.spear.alignment import CodeAlignment
from spear_plugin.models.spear.heads import CodebookHead, StreamOutput
from tests.common import assert_close


def create_head(*, alpha: float = 0.5, alignment: CodeAlignment | None = None) -> CodebookHead:
    torch.manual_seed(0)
    return CodebookHead(8, 3, 5, alignment=alignment or CodeAlignment(), alpha=alpha, domain_weights=(1.0, 0.1))


def create_input() -> dict[str, Tensor]:
    torch.manual_seed(4)
    codes = torch.randint(5, (2, 6, 3))
    codes[1, 4:] = -100
    codes[0, 2, 1] = -100
    return {
        "frames": torch.randn(2, 6, 8),
        "codes": codes,
        "is_masked": torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 1]], dtype=torch.bool),
        "is_ignored": torch.tensor([[0] * 6, [0, 0, 0, 1, 1, 1]], dtype=torch.bool),
        "domains": torch.tensor([0, 1]),
    }


COUNTS = ("num_masked", "num_unmasked", "correct_masked", "correct_unmasked")


def compute_reference(head: CodebookHead, *, alpha: float) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Return the losses of the two utterances, which are of one domain each, their cross-entropies, and all counts."""
    batch = create_input()
    losses, cross_entropies = [0.0, 0.0], [0.0, 0.0]
    counts = {name: torch.zeros(2, dtype=torch.int64) for name in COUNTS}
    counts |= {name: torch.zeros((3, 5), dtype=torch.int64) for name in ("predicted_counts", "target_counts")}
    for n in range(2):
        for t in range(6):
            for k in range(3):
                code = int(batch["codes"][n, t, k])
                if code == -100 or batch["is_ignored"][n, t]:
                    continue
                scores = head.weight[k] @ batch["frames"][n, t] + head.bias[k]
                is_masked = bool(batch["is_masked"][n, t])
                weight = 2 * alpha if is_masked else 2 * (1 - alpha)
                loss = -log_softmax(scores, dim=0)[code].item()
                cross_entropies[n] += loss
                losses[n] += weight * loss / 3
                kind = "masked" if is_masked else "unmasked"
                counts[f"num_{kind}"][n] += 1
                counts[f"correct_{kind}"][n] += int(scores.argmax()) == code
                counts["predicted_counts"][k, scores.argmax()] += 1
                counts["target_counts"][k, code] += 1
    return losses, cross_entropies, counts


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_losses_and_statistics_equal_a_loop_over_targets(alpha: float) -> None:
    head = create_head(alpha=alpha)
    losses, statistics = head(**create_input())
    expected, cross_entropies, counts = compute_reference(head, alpha=alpha)
    assert_close(losses, torch.tensor([expected[0], 0.1 * expected[1]]))
    assert_close(statistics.loss, torch.tensor(expected))
    assert_close(statistics.cross_entropy, torch.tensor(cross_entropies))
    for name, count in counts.items():
        assert getattr(statistics, name).tolist() == count.tolist(), name
    assert min(int(counts[name].min()) for name in COUNTS[:2]) > 0


def test_statistics_carry_no_gradient() -> None:
    _, statistics = create_head()(**create_input())
    assert isinstance(statistics, StreamOutput)
    assert not any(value.requires_grad for value in vars(statistics).values())


def test_a_batch_without_codes_has_zero_loss_and_zero_gradients() -> None:
    head = create_head()
    batch = create_input() | {"codes": torch.zeros((2, 0, 3), dtype=torch.int16)}
    losses, statistics = head(**batch)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert int((statistics.num_masked + statistics.num_unmasked).sum()) == 0
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_an_utterance_with_nan_counts_zero() -> None:
    head = create_head()
    batch = create_input()
    expected, _ = head(**batch)
    batch["frames"][1, 0, 0] = math.nan
    losses, statistics = head(**batch)
    assert losses.tolist() == [expected[0].item(), 0.0]
    assert statistics.loss.tolist() == [expected[0].item(), 0.0]


def test_stacked_code_frames_have_their_own_classifiers() -> None:
    head = create_head(alignment=CodeAlignment.between(50.0, 25.0))
    assert head.weight.shape == (6, 5, 8)
    # (N, C, K) = (1, 4, 3) -> two encoder frames with 6 codes each
    codes = torch.tensor([[[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]])
    assert head.alignment(codes, 2).tolist() == [[[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 1]]]


def test_predictions_are_float32_under_autocast() -> None:
    head = create_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.predict(torch.randn(1, 2, 8)).dtype == torch.float32


def test_weights_start_with_unit_variance_of_the_scores() -> None:
    torch.manual_seed(2)
    head = CodebookHead(64, 16, 256, alignment=CodeAlignment(), alpha=0.5, domain_weights=(1.0,))
    assert_close(head.weight.std(), torch.tensor(64**-0.5), rtol=0.01)
    assert not head.bias.any()


def test_rates_that_do_not_fit_raise_an_error() -> None:
    with pytest.raises(ValueError, match="must be a multiple or a fraction of the encoder's 50 Hz, but is 40"):
        CodeAlignment.between(40.0, 50.0)


def test_a_smaller_initial_scale_makes_the_first_predictions_more_alike() -> None:
    heads = [
        CodebookHead(
            64,
            2,
            256,
            alignment=CodeAlignment.between(50.0, 50.0),
            alpha=0.5,
            domain_weights=[1.0, 1.0],
            init_scale=scale,
        )
        for scale in (1.0, 0.1)
    ]
    frames = torch.randn(2, 50, 64)
    deviations = [head.predict(frames).std().item() for head in heads]
    assert deviations == pytest.approx([1.0, 0.1], rel=0.1)

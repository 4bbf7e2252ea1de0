"""The rules for gradients against what they are said to do; parity tests compare them with the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from spear_plugin.nn.gradients import GradientScale, Mode, ParameterLimits, ScorePenalty
from spear_plugin.nn.regularizers import Balancer, Whiten
from spear_plugin.nn.schedules import Schedule, set_batch_count
from tests.common import assert_close, assert_equal


def make_balancer(mode: Mode) -> Module:
    return Balancer(min_positive=0.9, max_positive=1.0, min_abs=2.0, max_abs=3.0, probability=0.3, mode=mode)


def make_whitener(mode: Mode) -> Module:
    return Whiten(limit=1.01, grad_scale=0.1, mode=mode)


def make_limits(mode: Mode) -> Module:
    return ParameterLimits(5.0, 6.0, mode=mode)


RULES: dict[Callable[[Mode], Module], float] = {
    make_balancer: 0.3,
    make_whitener: 0.25,
    make_limits: 0.6,
    ScorePenalty: 0.1,
}
"""The rules with the share of calls in which they act on values that break them."""


def gradient_of(module: Module, x: Tensor, grad: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = module(x)
    assert torch.equal(y, x)
    return torch.autograd.grad(y, x, grad)[0]


def make_values() -> tuple[Tensor, Tensor]:
    """Return values (R, C) that break every rule, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator) - 0.5
    x[:, 1] += x[:, 0]
    x[0, 0] = 30.0
    return x, torch.randn(40, 6, generator=generator)


@pytest.mark.parametrize("make", RULES)
def test_a_rule_acts_at_its_rate_always_or_never_and_not_in_evaluation(make: Callable[[Mode], Module]) -> None:
    x, grad = make_values()
    assert_equal(gradient_of(make("off"), x, grad), grad)
    assert not torch.equal(gradient_of(make("forced"), x, grad), grad)
    assert_equal(gradient_of(make("forced").eval(), x, grad), grad)

    torch.manual_seed(0)
    rule = make("scheduled")
    num_acts = sum(not torch.equal(gradient_of(rule, x, grad), grad) for _ in range(2000))
    # 4.5 standard deviations
    share = RULES[make]
    assert num_acts / 2000 == pytest.approx(share, abs=4.5 * (share * (1 - share) / 2000) ** 0.5)


@pytest.mark.parametrize("make", RULES)
def test_a_rule_draws_nothing_where_it_cannot_act(make: Callable[[Mode], Module]) -> None:
    x, _ = make_values()
    state = torch.get_rng_state()
    rule = make("scheduled")
    assert rule(x) is x
    with torch.no_grad():
        rule(x.requires_grad_())
    make("off")(x)
    make("forced")(x)
    assert_equal(torch.get_rng_state(), state)


def penalize(x: Tensor, bounds: tuple[float, float, float, float]) -> Tensor:
    """The loss per channel whose gradient a balancer adds, for x (R, C) and bounds of mean / deviation and of rms."""
    mean, mean_square = x.mean(dim=0), x.square().mean(dim=0)
    ratio = mean / (mean_square - mean.square()).sqrt()
    rms = mean_square.sqrt()
    low, high, min_rms, max_rms = bounds
    return (ratio - ratio.clamp(low, high)).abs() + (rms.clamp(min_rms, max_rms) / rms).log().abs()


def test_a_balancer_adds_the_scaled_gradient_of_its_penalty() -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(2, 40, 6, dtype=torch.float64)
    # Two channels as they should be, and others too small, too large, too positive, and too negative and too small
    x[:, 2:4] *= torch.tensor([0.01, 100.0])
    x[:, 4] += 3.0
    x[:, 5] = 0.01 * x[:, 5] - 0.02
    balancer = Balancer(
        min_positive=0.2, max_positive=0.8, min_abs=0.1, max_abs=4.0, probability=0.0, channel_dim=0, mode="forced"
    )

    bound = 0.8139535143 * torch.atanh(torch.tensor(0.6, dtype=torch.float64)).item()
    rms_of_abs = (torch.pi / 2) ** 0.5
    leaf = x.clone().requires_grad_()
    penalties = penalize(leaf, (-bound, bound, 0.1 * rms_of_abs, 4.0 * rms_of_abs))
    (push,) = torch.autograd.grad(penalties.sum(), leaf)
    push = push * 0.04 / push.square().mean(dim=0).sqrt().clamp_min(1e-20)

    actual = gradient_of(balancer, x.T, grad.T).T
    assert_close(actual, grad + grad.abs() * push, atol=1e-6)
    is_changed = (actual != grad).any(dim=0)
    assert is_changed.tolist() == [False, False, True, True, True, True]


def test_a_balancer_moves_a_channel_into_its_range() -> None:
    torch.manual_seed(0)
    balancer = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.5, max_abs=2.0, probability=1.0, mode="forced")
    x = 0.1 * torch.randn(200, 2) + torch.tensor([2.0, 0.0])
    grad = torch.ones_like(x)
    for _ in range(200):
        x = x - (gradient_of(balancer, x, grad) - grad)
    shares, magnitudes = (x > 0).float().mean(dim=0), x.abs().mean(dim=0)
    assert ((shares > 0.35) & (shares < 0.65)).all()
    assert ((magnitudes > 0.4) & (magnitudes < 2.2)).all()


def test_a_constant_channel_leaves_gradients_finite() -> None:
    x, grad = torch.zeros(10, 3), torch.randn(10, 3)
    x[:, 1] = 7.0
    for rule in (make_balancer("forced"), make_whitener("forced")):
        assert gradient_of(rule, x, grad).isfinite().all()


def measure_whiteness(x: Tensor, num_groups: int) -> Tensor:
    """The metric of a whitener for x (R, C)."""
    x = x - x.mean(dim=0)
    groups = x.reshape(x.size(0), num_groups, -1)
    covariances = torch.einsum("rgc,rgd->gcd", groups, groups)
    mean_trace = torch.einsum("gcc->", covariances) / x.size(1)
    return covariances.square().sum() / x.size(1) / mean_trace.square()


@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_whitener_adds_the_scaled_gradient_of_its_metric(num_groups: int) -> None:
    x, grad = make_values()
    leaf = x.double().requires_grad_()
    metric = measure_whiteness(leaf, num_groups)
    (push,) = torch.autograd.grad(metric, leaf)
    expected = grad + 0.1 * push * grad.norm() / push.norm()
    whitener = Whiten(limit=metric.item() - 0.01, grad_scale=0.1, num_groups=num_groups, mode="forced")
    assert_close(gradient_of(whitener, x[:, None], grad[:, None])[:, 0], expected, atol=1e-6)
    whitener = Whiten(limit=metric.item() + 0.01, grad_scale=0.1, num_groups=num_groups, mode="forced")
    assert_equal(gradient_of(whitener, x, grad), grad)


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_whitener_acts_seldom_while_the_metric_is_below_its_limit(
    is_readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear_plugin.nn.regularizers.is_readable", lambda _: is_readable)
    x, grad = make_values()
    torch.manual_seed(0)
    whitener = Whiten(limit=1e6, grad_scale=0.1, mode="scheduled")

    def count_acts(is_white: int) -> int:
        count = 0
        for _ in range(2000):
            whitener.is_white = torch.tensor(is_white, dtype=torch.uint8)
            count += not torch.equal(gradient_of(whitener, x, grad), grad)
        return count

    assert count_acts(0) == 0
    for _ in range(100):
        gradient_of(whitener, x, grad)
    assert whitener.is_white == 1

    whitener.limit = Schedule((0.0, 1.01), default=1.01)
    # 4.5 standard deviations around 2.5 % and 25 %
    assert count_acts(1) == pytest.approx(50, abs=32)
    assert count_acts(0) == pytest.approx(500, abs=87)
    for _ in range(1000):
        gradient_of(whitener, x, grad)
    assert whitener.is_white == 0


def test_both_ways_of_a_whitener_act_in_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = make_values()
    results = []
    for is_readable in (True, False):
        monkeypatch.setattr("spear_plugin.nn.regularizers.is_readable", lambda _, result=is_readable: result)
        torch.manual_seed(0)
        whitener = Whiten(limit=3.0, grad_scale=0.1, mode="scheduled")
        limit = measure_whiteness(x, 1).item()
        rows = []
        for step in range(400):
            # Above the limit and below it in turns
            whitener.limit = Schedule((0.0, 1.0), default=limit + (0.1 if step % 7 < 4 else -0.1))
            rows.append(gradient_of(whitener, x, grad))
        results.append(torch.stack(rows))
    assert_equal(results[0], results[1])


def test_limits_turn_only_the_gradients_that_lead_further_out() -> None:
    limits = ParameterLimits(Schedule((0.0, 0.9), (10.0, 0.2)), 1.0, mode="forced")
    parameter = torch.tensor([0.5, 0.5, 1.5, 1.5, 0.95, 0.95])
    grad = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    set_batch_count(limits, 0.0)
    # Descent subtracts gradients: below the range they must not be positive, above it not negative.
    assert gradient_of(limits, parameter, grad).tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, -1.0]
    set_batch_count(limits, 10.0)
    assert gradient_of(limits, parameter, grad).tolist() == [1.0, -1.0, 1.0, 1.0, 1.0, -1.0]


def test_the_score_penalty_survives_a_change_of_the_scores_in_place() -> None:
    scores = torch.tensor([10.0, 30.0, -40.0, 50.0], requires_grad=True)
    y = ScorePenalty("forced")(scores).masked_fill_(torch.tensor([False, False, False, True]), -1000.0)
    (grad,) = torch.autograd.grad(y.sum(), scores)
    assert_close(grad, torch.tensor([1.0, 1.0 + 1e-4, 1.0 - 1e-4, 1e-4]), atol=1e-7)


def test_gradients_are_scaled_in_training_only() -> None:
    x, grad = make_values()
    scale = GradientScale(0.2)
    assert_close(gradient_of(scale, x, grad), 0.2 * grad)
    assert_equal(gradient_of(scale.eval(), x, grad), grad)


@pytest.mark.parametrize("make", [make_balancer, make_whitener])
def test_half_precision_is_measured_in_float32(make: Callable[[Mode], Module]) -> None:
    x, grad = make_values()
    # The sum of squares of a large channel is infinite in float16.
    x[:, 3] *= 1000.0
    expected = gradient_of(make("forced"), x.half().float(), grad.half().float())
    actual = gradient_of(make("forced"), x.half(), grad.half())
    assert actual.dtype == torch.float16
    assert_close(actual, expected, rtol=2e-3, atol=2e-3)

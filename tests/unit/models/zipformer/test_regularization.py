"""What acts in training only: rates, what shares a draw, and that every switch works."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from torch import Tensor
from torch.nn import Module

from spear_plugin.models.zipformer import (
    RegularizationConfig,
    ZipformerConfig,
    ZipformerEncoder,
    create_conv_subsampling,
    create_zipformer,
    forced_regularization,
    num_whiteners,
    plain_regularization,
    zipformer_large,
    zipformer_tiny,
    zipformer_xlarge,
)
from spear_plugin.models.zipformer.attention import relative_positions
from spear_plugin.models.zipformer.encoder import draw_row_masks, expand_row_masks
from spear_plugin.models.zipformer.factory import ZipformerFactory
from spear_plugin.models.zipformer.layer import Bypass, ZipformerLayer
from spear_plugin.models.zipformer.regularization import draw_kept_rows
from spear_plugin.nn.regularizers import Balancer, whiteners
from spear_plugin.nn.schedules import Schedule, constant, set_batch_count
from tests.common import assert_close, assert_equal
from tests.unit.models.zipformer.makers import enlarge_small_parameters, make_config

OFF = replace(
    forced_regularization(), balancer="off", whitening="off", limits="off", score_penalty="off"
)  # first_conv_grad_scale is left on, which the forward pass cannot see


def make_layer(regularization: RegularizationConfig, **changes: Any) -> ZipformerLayer:
    layer = ZipformerFactory(make_config(regularization=regularization, **changes)).create_layer(0)
    enlarge_small_parameters(layer)
    return layer


def call_layer(layer: ZipformerLayer, x: Tensor) -> Tensor:
    return layer(x, relative_positions(x.size(1), 12), None)


def test_layers_join_in_one_after_the_other_and_end_with_the_authors_skip_rates() -> None:
    config = ZipformerConfig()
    factory = ZipformerFactory(config)
    for stack, (factor, num_layers) in enumerate(zip(config.downsampling_factors, config.num_layers, strict=True)):
        for index in range(num_layers):
            with torch.device("meta"):
                skip = factory.create_layer(stack, index).bypass.skip
            # Seven stacks warm up in seven equal parts, from 500 to 4000.
            begin = 500 * (stack + 1) + 500 * index / num_layers
            assert skip.counts == pytest.approx([begin, begin + 500 / num_layers])
            assert skip.values == pytest.approx([0.5, {1: 0.035, 2: 0.0495, 4: 0.07, 8: 0.099}[factor]], abs=1e-4)


def test_rates_in_the_middle_of_training_are_the_authors() -> None:
    layer = ZipformerFactory(make_config()).create_layer(0)
    front_end = create_conv_subsampling(make_config())
    for module in (layer, front_end):
        set_batch_count(module, 10_000.0)
    attention = layer.self_attn_weights
    rates = {
        layer.attention_skip: 0.025,
        layer.conv_skip: 0.025,
        layer.ff2_skip: 0.01 * 40 / 46,
        layer.ff3_skip: 0.01 * 40 / 46,
        layer.feed_forward1.dropout.p: 0.2,
        attention.position_skip: 0.0,
        front_end.convnext.skip: 0.1075,
        front_end.dropout.p: 0.2,
        layer.balancer1.probability: 0.125,
        attention.balance_keys.probability: 0.025,
        layer.balancer_na.probability: 0.05,
        attention.whiten_keys.limit: 4.5,
        layer.self_attn1.whiten.limit: 15.0,
        layer.nonlin_attention.whiten1.limit: 7.5,
        layer.nonlin_attention.whiten2.limit: 10.0,
        layer.feed_forward3.out_whiten.limit: 11.25,
        layer.conv_module1.whiten.limit: 11.25,
        layer.whiten.limit: 8.0,
        front_end.out_whiten.limit: 6.0,
        front_end.convnext.out_whiten.limit: 5.0,
        layer.nonlin_attention.balancer.min_positive: 0.15,
        layer.nonlin_attention.balancer.max_positive: 0.85,
        layer.conv_module2.balancer1.max_abs: 10.0,
        layer.conv_module2.balancer2.min_abs: 0.35,
        layer.balancer_ff3.min_abs: 0.2,
    }
    for schedule, rate in rates.items():
        assert schedule.value == pytest.approx(rate), schedule
    assert layer.bypass.limits is not None
    assert layer.bypass.limits.low.value == pytest.approx(0.55)


def test_every_default_of_a_rate_that_evaluation_asks_for_is_zero() -> None:
    for layer in (make_layer(RegularizationConfig()), make_layer(plain_regularization())):
        layer.eval()
        set_batch_count(layer, 0.0)
        skips = (layer.attention_skip, layer.conv_skip, layer.ff2_skip, layer.ff3_skip, layer.bypass.skip)
        assert [skip.value for skip in skips] == [0.0] * 5


def test_rows_are_left_out_at_their_rate() -> None:
    torch.manual_seed(0)
    kept = draw_kept_rows(torch.zeros(20_000, 3, 2), constant(0.2))
    assert kept is not None
    assert kept.shape == (20_000, 1, 1)
    assert sorted(kept.unique().tolist()) == [0.0, 1.0]
    assert kept.mean().item() == pytest.approx(0.8, abs=0.013)
    assert draw_kept_rows(torch.zeros(4, 3, 2), constant(0.0)) is None


def test_an_utterance_that_skips_a_layer_keeps_its_input_exactly() -> None:
    torch.manual_seed(0)
    bypass = Bypass(4, skip=constant(0.5))
    x, y = torch.randn(2, 100, 3, 4)
    z = bypass(x, y)
    is_skipped = (z == x).flatten(1).all(dim=1)
    assert 30 < is_skipped.sum() < 70
    assert_close(z[~is_skipped], ((x + y) / 2)[~is_skipped])


@pytest.mark.parametrize("branch", ["attention", "conv", "ff2", "ff3"])
def test_a_branch_that_is_always_skipped_adds_nothing(branch: str) -> None:
    x = torch.randn(3, 7, 16)
    layer = make_layer(OFF)
    expected = make_layer(OFF)
    expected.load_state_dict(layer.state_dict())
    modules: dict[str, list[Module]] = {
        "attention": [expected.nonlin_attention, expected.self_attn1, expected.self_attn2],
        "conv": [expected.conv_module1, expected.conv_module2],
        "ff2": [expected.feed_forward2],
        "ff3": [expected.feed_forward3],
    }
    for module in modules[branch]:
        for parameter in module.get_submodule("out_proj").parameters():
            torch.nn.init.zeros_(parameter)
    setattr(layer, f"{branch}_skip", constant(1.0))
    assert not torch.allclose(call_layer(layer, x), call_layer(make_twin(layer), x))
    assert_close(call_layer(layer, x), call_layer(expected, x))


def make_twin(layer: ZipformerLayer) -> ZipformerLayer:
    twin = make_layer(OFF)
    twin.load_state_dict(layer.state_dict())
    return twin


def test_all_uses_of_the_attention_weights_are_skipped_together() -> None:
    torch.manual_seed(0)
    layer = make_layer(OFF)
    layer.attention_skip = constant(0.5)
    outputs: dict[str, Tensor] = {}
    for name in ("nonlin_attention", "self_attn1", "self_attn2"):
        layer.get_submodule(name).register_forward_hook(lambda _m, _i, y, name=name: outputs.update({name: y}))
    x = torch.randn(40, 5, 16)
    gradients = torch.autograd.grad(call_layer(layer, x).square().sum(), list(outputs.values()))
    has_gradient = [gradient.abs().sum(dim=(1, 2)) > 0.0 for gradient in gradients]
    assert_equal(has_gradient[0], has_gradient[1])
    assert_equal(has_gradient[0], has_gradient[2])
    assert 5 < has_gradient[0].sum() < 35


def test_attention_without_positions_ignores_them_and_their_projection_has_a_gradient_of_zero() -> None:
    layer = make_layer(OFF)
    attention = layer.self_attn_weights
    attention.position_skip = constant(1.0)
    x = torch.randn(2, 5, 16)
    y = attention(x, relative_positions(5, 12), None)
    assert_equal(y, attention(x, torch.zeros(10, 12), None))
    y.square().sum().backward()
    gradient = attention.linear_pos.weight.grad
    # Not None, which data parallelism refuses.
    assert gradient is not None
    assert not gradient.any()
    attention.position_skip = constant(0.0)
    assert not torch.allclose(y, attention(x, relative_positions(5, 12), None))


def test_feature_masks_have_the_authors_rates_and_channels() -> None:
    torch.manual_seed(0)
    row_masks = draw_row_masks(torch.zeros(20_000, 1, 1), 0.125)
    lower, upper = row_masks.unbind(dim=1)
    assert not (upper & ~lower).any()
    assert (~lower).float().mean().item() == pytest.approx(0.125, abs=0.01)
    assert (~upper).float().mean().item() == pytest.approx(0.234, abs=0.013)

    mask = expand_row_masks(torch.tensor([[True, True], [True, False], [False, False]]), 9, 4)
    # 4 channels that nothing masks, floor((9 - 4) / 2) lower ones and 3 upper ones
    assert mask[:, 0].int().tolist() == [[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5]


def encode(encoder: ZipformerEncoder, x: Tensor) -> Tensor:
    return encoder(x, torch.tensor([21, 13])).last


def test_a_masked_utterance_has_no_upper_channels_in_any_layer() -> None:
    torch.manual_seed(0)
    encoder = create_zipformer(make_config(regularization=replace(OFF, feature_mask_p=0.5)))
    for layer in encoder(torch.randn(60, 9, 16), None).layers:
        is_masked = (layer == 0.0).all(dim=1)
        lower, upper = is_masked[:, 8:12].all(dim=1), is_masked[:, 12:].all(dim=1)
        assert not is_masked[:, :8].any()
        assert 15 < lower.sum() < 45
        assert (upper & ~lower).any()
        assert not (lower & ~upper).any()


SWITCHES: dict[str, Any] = {
    "dropout": "scheduled",
    "branch_skips": "scheduled",
    "layer_skips": "scheduled",
    "position_skips": "scheduled",
    "feature_mask_p": 0.5,
}


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_alone_makes_the_forward_pass_random_and_without_any_it_is_that_of_evaluation(name: str) -> None:
    x = torch.randn(2, 21, 16)
    encoder = create_zipformer(make_config(regularization=replace(OFF, **{name: SWITCHES[name]})))
    enlarge_small_parameters(encoder)
    set_batch_count(encoder, 0.0)
    torch.manual_seed(1)
    first, second = encode(encoder, x), encode(encoder, x)
    torch.manual_seed(1)
    assert_equal(encode(encoder, x), first)
    assert not torch.equal(first, second)

    off = create_zipformer(make_config(regularization=OFF))
    off.load_state_dict(encoder.state_dict())
    set_batch_count(off, 0.0)
    assert_equal(encode(off, x), encode(encoder.eval(), x))


@pytest.mark.parametrize("name", ["balancer", "whitening", "limits", "score_penalty"])
def test_each_rule_for_gradients_alone_changes_gradients_and_nothing_else(name: str) -> None:
    x = torch.randn(2, 21, 16)
    plain = create_zipformer(make_config(regularization=OFF))
    enlarge_small_parameters(plain)
    with torch.no_grad():
        for stack in plain.layer_lists:
            for layer in stack:
                layer.get_parameter("self_attn_weights.in_proj.weight").mul_(8.0)  # scores beyond 25
    changes: dict[str, Any] = {name: "forced"}
    forced = create_zipformer(make_config(regularization=replace(OFF, **changes)))
    forced.load_state_dict(plain.state_dict())

    gradients = []
    for encoder in (plain, forced):
        set_batch_count(encoder, 1000.0)
        output = encode(encoder, x)
        (output * torch.linspace(-1.0, 1.0, 16)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert_equal(encode(plain, x), encode(forced, x))
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=0.0)


def test_the_first_convolution_learns_slower() -> None:
    gradients = []
    for scale in (1.0, 0.2):
        torch.manual_seed(0)
        config = make_config(regularization=replace(OFF, first_conv_grad_scale=scale))
        front_end = create_conv_subsampling(config)
        x = torch.randn(2, 30, 20, requires_grad=True)
        front_end(x, None)[0].square().sum().backward()
        gradients.append([x.grad, *(front_end.get_parameter(f"conv.{i}.weight").grad for i in (0, 4))])
    for plain, scaled, factor in zip(*gradients, (0.2, 0.2, 1.0), strict=True):
        assert plain is not None
        assert scaled is not None
        assert_close(scaled, factor * plain)


def test_the_presets_say_what_the_authors_do_and_what_a_short_run_needs() -> None:
    assert ZipformerConfig().regularization == zipformer_large().regularization == RegularizationConfig()
    assert zipformer_xlarge().encoder_unmasked_dims == [768] * 7
    assert zipformer_tiny().regularization == plain_regularization()
    # Nothing random or forced may hide in a field that these two do not set.
    names = {field.name for field in fields(RegularizationConfig)}
    assert names == {*SWITCHES, "balancer", "whitening", "limits", "score_penalty"} | {
        "first_conv_grad_scale",
        "warmup_batches",
    }


def test_the_whiteners_are_counted() -> None:
    config = make_config()
    models = (create_conv_subsampling(config), create_zipformer(config))
    assert sum(len(list(whiteners(model))) for model in models) == num_whiteners(config)
    balancers = [module for module in models[1].modules() if isinstance(module, Balancer)]
    # keys, 2 of the nonlinear attention, 3 in and 2 behind feed-forwards, 4 of convolutions, 2 at the end
    assert len(balancers) == 14 * sum(config.num_layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_mask_p": 1.0}, r"`feature_mask_p` must be in \[0, 1\), but is 1.0"),
        ({"warmup_batches": 0.0}, r"`warmup_batches` must be positive, but is 0.0"),
        ({"balancer": "on"}, r"`balancer` must be one of .*'off', 'scheduled', 'forced'.*, but is 'on'"),
    ],
)
def test_a_wrong_switch_is_named_with_its_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StandardObjectValidator().validate(make_config(regularization=replace(RegularizationConfig(), **changes)))


def test_unmasked_dims_need_one_entry_per_stack() -> None:
    with pytest.raises(ValidationError, match=r"`encoder_unmasked_dims` must have one entry per stack"):
        StandardObjectValidator().validate(make_config(encoder_unmasked_dims=[8]))


def test_a_schedule_is_no_part_of_the_state_dict() -> None:
    layer = make_layer(RegularizationConfig())
    assert any(isinstance(module, Schedule) for module in layer.modules())
    assert len(layer.state_dict()) == len(list(layer.parameters()))

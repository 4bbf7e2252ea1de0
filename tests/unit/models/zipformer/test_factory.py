from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fairseq2.nn.utils.module import reset_parameters, to_empty
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from torch import Tensor

from spear_plugin.models.zipformer import ZipformerEncoder, create_conv_subsampling, create_zipformer, zipformer_tiny
from spear_plugin.models.zipformer.factory import ZipformerFactory
from tests.common import assert_equal
from tests.unit.models.zipformer.makers import SMALL, make_config


def create_directly() -> ZipformerEncoder:
    return create_zipformer(SMALL)


def create_on_meta_device() -> ZipformerEncoder:
    with torch.device("meta"):
        encoder = create_zipformer(SMALL)

    to_empty(encoder, torch.device("cpu"))
    reset_parameters(encoder)

    return encoder


@pytest.mark.parametrize("create", [create_directly, create_on_meta_device])
def test_layers_of_a_stack_start_identical_and_stacks_do_not(create: Callable[[], ZipformerEncoder]) -> None:
    encoder = create()

    first, second = encoder.layer_lists[1]

    assert first.state_dict().keys() == second.state_dict().keys()

    for (_, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert_equal(a, b)
        assert a.data_ptr() != b.data_ptr()

    other = encoder.layer_lists[0][0].state_dict()

    assert not torch.equal(other["feed_forward1.in_proj.weight"], first.state_dict()["feed_forward1.in_proj.weight"])


def assert_uniform(tensor: Tensor, bound: float) -> None:
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.9 * bound
    assert tensor.mean().abs() < 0.3 * bound


def test_a_layer_starts_with_the_authors_scales() -> None:
    torch.manual_seed(0)

    config = make_config(encoder_dims=[64] * 5, feedforward_dims=[96] * 5, num_heads=[16] * 5)

    layer = ZipformerFactory(config).create_layer(0)

    bounds = {
        "self_attn_weights.in_proj": (8**-0.25 / 8, 0.1 * 8**-0.25),
        "self_attn1.in_proj": (1 / 8, 1 / 8),
        "self_attn2.out_proj": (0.05 / 96**0.5, 0.005),
        "nonlin_attention.in_proj": (1 / 8, 1 / 8),
        "nonlin_attention.out_proj": (0.05 / 48**0.5, 0.005),
        "feed_forward3.in_proj": (1 / 8, 1 / 8),
        "feed_forward3.out_proj": (0.1 / 120**0.5, 0.01),
        "conv_module1.in_proj": (1 / 8, 1 / 8),
        "conv_module1.depthwise_conv": (1 / 5**0.5, 1 / 5**0.5),
        "conv_module1.out_proj": (0.05 / 8, 0.005),
    }

    state_dict = layer.state_dict()

    for name, (weight_bound, bias_bound) in bounds.items():
        assert_uniform(state_dict[f"{name}.weight"], weight_bound)
        assert_uniform(state_dict[f"{name}.bias"], bias_bound)

    assert_uniform(state_dict["self_attn_weights.linear_pos.weight"], 0.05 / 12**0.5)

    assert (state_dict["bypass.bypass_scale"] == 0.5).all()
    assert state_dict["norm.log_scale"] == 1.0
    assert 0.5e-4 < state_dict["norm.bias"].std() < 2e-4


def test_the_last_convolution_of_the_front_end_starts_small() -> None:
    torch.manual_seed(0)

    convnext = create_conv_subsampling(make_config(subsampling_channels=[8, 32, 64])).convnext

    assert_uniform(convnext.pointwise_conv1.weight, 1 / 8)
    assert_uniform(convnext.pointwise_conv2.weight, 0.01 / 192**0.5)


def test_the_demo_size_stays_small() -> None:
    with torch.device("meta"):
        models = (create_conv_subsampling(zipformer_tiny()), create_zipformer(zipformer_tiny()))

    assert sum(parameter.numel() for model in models for parameter in model.parameters()) < 4_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2, 2]}, r"`num_heads` must have one entry per stack.*has 5, but has 2 instead"),
        ({"kernel_sizes": [5, 4, 5, 5, 5]}, r"`kernel_sizes` must be odd"),
        ({"num_layers": [1, 0, 1, 1, 1]}, r"`num_layers` must hold positive integers"),
        ({"downsampling_factors": [0, 2, 4, 8, 1]}, r"`downsampling_factors` must hold positive integers"),
        ({"subsampling_channels": [8, 32]}, r"`subsampling_channels` must have 3 entries"),
        ({"num_mel_bins": 6}, r"`num_mel_bins` must be at least 7"),
        ({"pos_dim": 47}, r"`pos_dim` must be even"),
        ({"output_downsampling_factor": 4}, r"`output_downsampling_factor` must be 1 \(50 Hz\) or 2 \(25 Hz\)"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StandardObjectValidator().validate(make_config(**changes))

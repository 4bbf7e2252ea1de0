from __future__ import annotations

import pytest
import torch

from spear_plugin.models.zipformer import create_zipformer
from spear_plugin.models.zipformer.encoder import Downsample
from spear_plugin.models.zipformer.padding import Padding
from tests.common import assert_close, assert_equal
from tests.unit.models.zipformer.makers import make_config, make_models


def test_layers_are_at_50_hz_and_the_last_one_is_the_output() -> None:
    _, encoder = make_models(make_config())

    output = encoder(torch.randn(2, 21, 16), None)

    assert [tuple(layer.shape) for layer in output.layers] == [(2, 21, 16)] * 6

    assert_equal(output.layers[-1], output.last)

    # The fifth layer runs at 1 / 8 of the rate.
    assert_equal(output.layers[4][:, 8:16], output.layers[4][:, 8:9].expand(-1, 8, -1))


def test_without_collecting_layers_the_output_is_the_same() -> None:
    _, encoder = make_models(make_config())

    x = torch.randn(2, 21, 16)

    output = encoder(x, None, collect_layers=False)

    assert output.layers == []
    assert_equal(output.last, encoder(x, None).last)


def test_output_at_25_hz_averages_pairs_of_the_output_at_50_hz() -> None:
    _, encoder = make_models(make_config())
    _, halved = make_models(make_config(output_downsampling_factor=2))

    missing = halved.load_state_dict(encoder.state_dict(), strict=False).missing_keys

    assert missing == ["downsample_output.bias"]

    assert halved.downsample_output is not None

    torch.nn.init.zeros_(halved.downsample_output.bias)

    x = torch.randn(2, 20, 16)

    output = halved(x, torch.tensor([20, 13]))

    assert output.lengths is not None
    assert output.lengths.tolist() == [10, 7]

    expected = encoder(x, torch.tensor([20, 13])).last

    assert_close(output.last[0], torch.unflatten(expected[0], 0, (10, 2)).mean(dim=1))
    assert_close(output.last[1, 6], expected[1, 12])


def test_channels_that_only_earlier_stacks_have_come_from_the_latest_of_them() -> None:
    _, encoder = make_models(
        make_config(downsampling_factors=[1] * 5, encoder_dims=[16, 24, 32, 20, 8], num_layers=[1] * 5)
    )

    output = encoder(torch.randn(2, 9, 16), None)

    # At the full rate a stack's output is that of its layer.
    _, _, third, fourth, fifth = output.layers

    assert_equal(output.last, torch.cat([fifth, fourth[..., 8:20], third[..., 20:32]], dim=-1))


@pytest.mark.parametrize("reference", [False, True])
def test_downsampling_repeats_the_last_frame_of_the_utterance_or_of_the_batch(reference: bool) -> None:
    downsample = Downsample(4)

    x = torch.arange(1.0, 8.0)[None, :, None].repeat(2, 1, 1)

    y = downsample(x, Padding(torch.tensor([7, 5]), reference))

    # 1 2 3 4 | 5 6 7 7 and, for 5 frames, 1 2 3 4 | 5 5 5 5
    assert y.squeeze(-1).tolist() == [[2.5, 6.25], [2.5, 6.25 if reference else 5.0]]


def test_layer_lists_hold_every_layer_and_may_be_replaced_in_place() -> None:
    encoder = create_zipformer(make_config())

    assert [len(layers) for layers in encoder.layer_lists] == [1, 2, 1, 1, 1]

    for layers in encoder.layer_lists:
        for index in range(len(layers)):
            layers[index] = torch.nn.Identity()

    assert not any("layers" in name for name, _ in encoder.named_parameters())

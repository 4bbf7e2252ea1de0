"""An utterance in a padded batch against the same utterance alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spear_plugin.models.zipformer import ConvSubsampling, ZipformerEncoder, ZipformerOutput
from tests.common import assert_close, assert_equal
from tests.unit.models.zipformer.makers import make_config, make_fbank, make_models

KNOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "output at 25 Hz": {"output_downsampling_factor": 2},
    "one stack": {
        "downsampling_factors": [1],
        "num_layers": [2],
        "encoder_dims": [16],
        "feedforward_dims": [24],
        "kernel_sizes": [31],
        "num_heads": [2],
    },
    "first stack downsampled": {"downsampling_factors": [3, 2, 1, 8, 4]},
    "widths per stack": {"encoder_dims": [16, 24, 32, 20, 8]},
    "heads per stack": {"num_heads": [1, 2, 4, 3, 2]},
    "wide kernels": {"kernel_sizes": [31, 31, 15, 15, 31]},
    "other head widths": {"query_head_dim": 4, "value_head_dim": 3, "pos_head_dim": 2, "pos_dim": 6},
}


def encode(
    models: tuple[ConvSubsampling, ZipformerEncoder], fbank: Tensor, lengths: Tensor | None, **options: Any
) -> ZipformerOutput:
    front_end, encoder = models

    with torch.no_grad():
        x, lengths = front_end(fbank, lengths, **options)

        return encoder(x, lengths, **options)


@pytest.mark.parametrize("knob", KNOBS)
def test_an_utterance_gives_in_a_batch_what_it_gives_alone(knob: str) -> None:
    models = make_models(make_config(**KNOBS[knob]))

    # 1 to 41 frames at 50 Hz: every remainder of the division by 8, odd and even numbers of input frames
    lengths = torch.tensor([9, 34, 20, 38, 23, 25, 44, 90, 61, 47])

    assert {int(length) % 8 for length in (lengths - 7) // 2} == set(range(8))

    fbank = make_fbank(lengths)

    batch = encode(models, fbank, lengths)

    assert batch.lengths is not None

    for index, length in enumerate(lengths.tolist()):
        alone = encode(models, fbank[index : index + 1, :length], None)

        num_frames = alone.last.size(1)

        assert batch.lengths[index] == num_frames

        assert_close(batch.last[index, :num_frames], alone.last[0], atol=1e-4)

        for ours, expected in zip(batch.layers, alone.layers, strict=True):
            assert_close(ours[index, : expected.size(1)], expected[0], atol=1e-4)


def test_reference_padding_lets_the_padding_into_the_last_frames() -> None:
    models = make_models(make_config())

    lengths = torch.tensor([80, 61])

    fbank = make_fbank(lengths)

    other = fbank.clone()
    other[1, 61:] += 1.0

    first = encode(models, fbank, lengths, reference_padding=True)
    second = encode(models, other, lengths, reference_padding=True)

    assert not torch.allclose(first.last[1, :27], second.last[1, :27], atol=1e-3)
    assert_equal(first.last[0], second.last[0])


@pytest.mark.parametrize("reference_padding", [False, True])
def test_lengths_that_leave_no_padding_change_nothing(reference_padding: bool) -> None:
    models = make_models(make_config(output_downsampling_factor=2))

    fbank = torch.randn(2, 53, 20)

    ours = encode(models, fbank, torch.tensor([53, 53]), reference_padding=reference_padding)
    expected = encode(models, fbank, None)

    assert ours.lengths is not None
    assert expected.lengths is None

    assert ours.lengths.tolist() == [12, 12]
    assert_close(ours.last, expected.last)

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear, ModuleList
from torch.nn.functional import cross_entropy

from spear_plugin.models.zipformer import create_conv_subsampling, create_zipformer
from tests.common import assert_equal
from tests.unit.models.zipformer.makers import SMALL, make_config


def test_training_learns_and_keeps_every_gradient_finite_on_silence_and_noise() -> None:
    torch.manual_seed(0)

    # With fewer channels than this the front end loses the mels.
    config = make_config(subsampling_channels=[4, 8, 8])

    front_end, encoder, head = create_conv_subsampling(config), create_zipformer(config), Linear(16, 4)

    model = ModuleList([front_end, encoder, head])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    losses = []

    for step in range(25):
        # (4, F, M), each utterance loud in the quarter of the mels that is to be recognized
        labels = torch.randint(4, (4, 1))
        fbank = torch.randn(4, 60, 20)
        fbank += 4.0 * (torch.arange(20) // 5 == labels[..., None])

        if step % 3 == 0:
            fbank[0, 20:40] = -23.02585
            fbank[1, 20:40] = 0.0

        x, lengths = front_end(fbank, torch.tensor([60, 55, 41, 22]))
        output = encoder(x, lengths, collect_layers=False)

        targets = labels.expand(-1, output.last.size(1))

        loss = cross_entropy(head(output.last).mT, targets)

        optimizer.zero_grad()
        torch.autograd.backward(loss)

        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

        optimizer.step()

        losses.append(loss.item())

    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_dropout_acts_in_training_only() -> None:
    encoder = create_zipformer(make_config(dropout_p=0.0, pos_dropout_p=0.5))

    x = torch.randn(1, 12, 16)

    assert not torch.equal(encoder(x, None).last, encoder(x, None).last)

    encoder.eval()

    assert_equal(encoder(x, None).last, encoder(x, None).last)


def test_a_whole_model_runs_under_autocast() -> None:
    front_end, encoder = create_conv_subsampling(SMALL), create_zipformer(SMALL)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, lengths = front_end(torch.randn(2, 60, 20), torch.tensor([60, 41]))
        output = encoder(x, lengths)

    torch.autograd.backward(output.last.sum())

    assert output.last.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_too_short_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have at least 9 frames.*but has 8 instead"):
        create_conv_subsampling(SMALL)(torch.randn(1, 8, 20), None)

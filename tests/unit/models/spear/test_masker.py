from __future__ import annotations

import torch

from spear_plugin.models.spear.masker import FbankMasker, FbankMasks


def create_masker() -> FbankMasker:
    return FbankMasker(time_probability=0.65, time_span=10, min_time_spans=2, channel_probability=0.25, channel_span=20)


def test_masked_frames_hold_the_embedding_and_masked_bins_are_zero_elsewhere() -> None:
    fbank = torch.randn(1, 4, 3)
    masks = FbankMasks(time=torch.tensor([[False, True, False, False]]), channel=torch.tensor([[True, False, False]]))
    mask_embed = torch.tensor([7.0, 8.0, 9.0])
    masked = masks.apply(fbank, mask_embed)
    expected = fbank.clone()
    expected[0, :, 0] = 0.0
    expected[0, 1] = mask_embed
    assert torch.equal(masked, expected)


def test_drawn_masks_have_the_paper_s_ratios_and_spare_padding() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1000, 400] * 100)
    masks = create_masker().draw(torch.zeros((200, 1000, 128)), lengths)
    assert not masks.time[1::2, 400:].any()
    assert abs(masks.time[::2].float().mean() - 0.49) < 0.01
    assert abs(masks.channel.float().mean() - 0.24) < 0.02
    # Every utterance has its own bins.
    assert not torch.equal(masks.channel[0], masks.channel[1])


def test_half_masked_output_frames_count_as_masked() -> None:
    time = torch.tensor([[True, False, False, False, True, True, False, False, True]])
    masks = FbankMasks(time=time, channel=torch.zeros((1, 1), dtype=torch.bool))
    assert masks.at_output_rate(3, factor=2).tolist() == [[True, False, True]]
    assert masks.at_output_rate(2, factor=4).tolist() == [[False, True]]

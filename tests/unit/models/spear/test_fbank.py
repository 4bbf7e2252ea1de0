from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from spear_plugin.models.spear.fbank import FBANK_PADDING, compute_fbank, num_fbank_frames
from tests.common import assert_close


def compute_reference(waveform: Tensor) -> Tensor:
    fbank: Tensor = kaldi.fbank(
        waveform[None], num_mel_bins=128, dither=0.0, snip_edges=False, high_freq=-400.0, energy_floor=1e-10
    )
    return fbank


@pytest.mark.parametrize("num_samples", [400, 1360, 16000, 20111, 48079, 48080])
def test_fbank_of_one_waveform_equals_torchaudio(num_samples: int) -> None:
    torch.manual_seed(0)
    waveform = 0.1 * torch.randn(num_samples) + 0.05 * torch.sin(0.2 * torch.arange(num_samples)) + 0.01
    fbank, lengths = compute_fbank(waveform[None], torch.tensor([num_samples]))
    expected = compute_reference(waveform)
    assert lengths.tolist() == [expected.size(0)] == [num_fbank_frames(num_samples)]
    assert_close(fbank[0], expected, atol=2e-4, rtol=0)


def test_padded_waveforms_give_what_each_gives_alone() -> None:
    torch.manual_seed(1)
    all_lengths = torch.tensor([16000, 15999, 9000, 1360, 400])
    # What lies beyond a length is deliberately not zero.
    waveforms = torch.randn(5, 16000)
    fbank, frame_lengths = compute_fbank(waveforms, all_lengths)
    assert fbank.shape == (5, 100, 128)
    for i, length in enumerate(all_lengths.tolist()):
        expected = compute_reference(waveforms[i, :length])
        num_frames = int(frame_lengths[i])
        assert num_frames == expected.size(0)
        assert_close(fbank[i, :num_frames], expected, atol=2e-4, rtol=0)
        assert (fbank[i, num_frames:] == FBANK_PADDING).all()


@pytest.mark.parametrize(("num_samples", "num_frames"), [(240, 2), (400, 3), (720, 5), (160000, 1000)])
def test_number_of_frames_is_rounded_half_up(num_samples: int, num_frames: int) -> None:
    assert num_fbank_frames(num_samples) == num_frames


def test_silence_gives_the_logarithm_of_the_float_epsilon() -> None:
    fbank, _ = compute_fbank(torch.zeros((1, 1600)), torch.tensor([1600]))
    assert_close(fbank, torch.full((1, 10, 128), math.log(torch.finfo(torch.float32).eps)))


def test_autocast_and_gradients_leave_the_features_alone() -> None:
    torch.manual_seed(2)
    waveforms = torch.randn(1, 8000, requires_grad=True)
    lengths = torch.tensor([8000])
    expected, _ = compute_fbank(waveforms, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fbank, _ = compute_fbank(waveforms, lengths)
    assert torch.equal(fbank, expected)
    assert fbank.dtype == torch.float32
    assert not fbank.requires_grad


@pytest.mark.parametrize("shape", [(1, 399), (16000,), (1, 1, 16000)])
def test_waveforms_without_a_window_raise_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`waveforms` must be of shape \(N, S\) with at least one window of 400"):
        compute_fbank(torch.zeros(shape), torch.tensor([399]))

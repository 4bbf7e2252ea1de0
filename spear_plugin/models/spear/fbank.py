"""Log-mel features for a padded batch of waveforms, on the device of the waveforms.

Values are those of ``torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=128, dither=0, snip_edges=False,
high_freq=-400, energy_floor=1e-10)`` for each utterance alone: 25 ms Povey windows every 10 ms, DC offset removed,
pre-emphasis 0.97, power spectrum of 512 points, 128 mel bins between 20 and 7600 Hz, natural logarithm. There is no
normalisation, and the waveform stays in [-1, 1].

Letters: N batch, S samples, T frames, F mels, W samples of a window.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.compliance.kaldi import get_mel_banks

SAMPLE_RATE: Final = 16_000
NUM_MEL_BINS: Final = 128
FBANK_PADDING: Final = math.log(1e-10)
"""The value of frames beyond an utterance's end (lhotse's padding, which SPEAR was trained with)."""

_WINDOW: Final = 400  # 25 ms
_SHIFT: Final = 160  # 10 ms
_FFT_SIZE: Final = 512
_LOW_HZ: Final = 20.0
_HIGH_HZ: Final = -400.0  # below the Nyquist frequency
_PRE_EMPHASIS: Final = 0.97
_NUM_BEFORE: Final = (_WINDOW - _SHIFT) // 2  # windows are centred on their 10 ms


def num_fbank_frames(num_samples: int) -> int:
    """Return the number of 10 ms frames for ``num_samples`` at 16 kHz, rounded half up."""
    return (num_samples + _SHIFT // 2) // _SHIFT


@torch.no_grad()
def compute_fbank(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log-mel features in float32, whatever the autocast state, and without gradient.

    Args:
        waveforms: (N, S) in [-1, 1] at 16 kHz; values beyond an utterance's length are ignored.
        lengths: (N,) int64 in samples, each at most S.

    Returns:
        (N, T, 128) float32 with T = (S + 80) // 160, filled with :data:`FBANK_PADDING` beyond each utterance's end, and
        the lengths in frames (N,), (length + 80) // 160.

    Raises:
        ValueError: If ``waveforms`` is not a batch of at least one window, 400 samples.
    """
    if waveforms.dim() != 2 or waveforms.size(1) < _WINDOW:
        raise ValueError(
            f"`waveforms` must be of shape (N, S) with at least one window of {_WINDOW} samples, but has the shape "
            f"{tuple(waveforms.shape)} instead."
        )
    with torch.autocast(waveforms.device.type, enabled=False):
        # (N, S) -> (N, T, W)
        windows = _cut_windows(waveforms.float(), lengths)
        # (N, T, W) -> (N, T, F)
        fbank = _compute_log_mel(windows)
    frame_lengths = (lengths + _SHIFT // 2) // _SHIFT
    is_padding = torch.arange(fbank.size(1), device=fbank.device) >= frame_lengths[:, None]
    return fbank.masked_fill_(is_padding[:, :, None], FBANK_PADDING), frame_lengths


def _cut_windows(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return overlapping windows (N, T, W); samples outside of an utterance mirror it at its own two ends."""
    num_beyond = _WINDOW // 2  # the last window ends at most half a window after the last sample
    steps = torch.arange(num_beyond, device=waveforms.device)
    ends = lengths[:, None] + steps
    mirrored = waveforms.gather(1, (lengths[:, None] - 1 - steps).clamp_(min=0))
    # (N, S) -> (N, 120 + S + 200)
    padded = torch.cat([waveforms[:, :_NUM_BEFORE].flip(1), pad(waveforms, (0, num_beyond))], dim=1)
    return padded.scatter_(1, _NUM_BEFORE + ends, mirrored).unfold(1, _WINDOW, _SHIFT)


def _compute_log_mel(windows: Tensor) -> Tensor:
    """The order of operations is torchaudio's, so that rounding is the same too."""
    window_function, mel_filters = _constants(windows.device)
    # (N, T, W) -> (N, T, 512); this and the squares are written in place because fresh memory costs more than the FFT
    frames = windows.new_zeros((*windows.shape[:2], _FFT_SIZE))
    torch.sub(windows, windows.mean(dim=2, keepdim=True), out=frames[:, :, :_WINDOW])
    # The first sample stays as it is: the window function is zero there.
    frames[:, :, 1:_WINDOW] -= _PRE_EMPHASIS * frames[:, :, : _WINDOW - 1]
    frames[:, :, :_WINDOW] *= window_function
    # (N, T, 512) -> (N, T, 257)
    squares = torch.view_as_real(torch.fft.rfft(frames)).square_()
    power = squares[..., 0] + squares[..., 1]
    # (N, T, 257) -> (N, T, F)
    mel = power.to(mel_filters.dtype) @ mel_filters
    # Kaldi's floor is the float32 epsilon; its energy floor concerns the unused energy column only.
    return mel.float().clamp_(min=torch.finfo(torch.float32).eps).log_()


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window (W) and the filters (257, F); constants rather than buffers, which a model's dtype would round.

    On CUDA the filters are float64: float32 products may run as TF32, which costs three digits.
    """
    window_function = torch.hann_window(_WINDOW, periodic=False, device=device).pow(0.85)
    filters, _ = get_mel_banks(NUM_MEL_BINS, _FFT_SIZE, SAMPLE_RATE, _LOW_HZ, _HIGH_HZ, 100.0, -500.0, 1.0)
    # The filter bank ends below the Nyquist bin.
    filters = pad(filters, (0, 1)).T.contiguous()
    return window_function, filters.to(device, torch.float64 if device.type == "cuda" else torch.float32)

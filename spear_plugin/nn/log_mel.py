"""Log-mel spectra of windows of samples, as Kaldi and torchaudio compute them.

25 ms Povey windows, DC offset removed, pre-emphasis 0.97, power spectrum of 512 points, 128 mel bins between 20 and
7600 Hz, natural logarithm.

Letters: W samples of a window, F mels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.compliance.kaldi import get_mel_banks

SAMPLE_RATE: Final = 16_000
NUM_MEL_BINS: Final = 128

WINDOW: Final = 400
"""The samples of a window, 25 ms."""

SHIFT: Final = 160
"""The samples from one window to the next, 10 ms."""

_FFT_SIZE: Final = 512
_LOW_HZ: Final = 20.0
_HIGH_HZ: Final = -400.0  # below the Nyquist frequency
_PRE_EMPHASIS: Final = 0.97


def compute_log_mel(windows: Tensor) -> Tensor:
    """Return (..., 128) float32 for windows (..., 400) float32, without autocast around it.

    The order of operations is torchaudio's, so that rounding is the same too.
    """
    window_function, mel_filters = _constants(windows.device)
    # (..., W) -> (..., 512); this and the squares are written in place because fresh memory costs more than the FFT
    frames = windows.new_zeros((*windows.shape[:-1], _FFT_SIZE))
    torch.sub(windows, windows.mean(dim=-1, keepdim=True), out=frames[..., :WINDOW])
    # The first sample stays as it is: the window function is zero there.
    frames[..., 1:WINDOW] -= _PRE_EMPHASIS * frames[..., : WINDOW - 1]
    frames[..., :WINDOW] *= window_function
    # (..., 512) -> (..., 257)
    squares = torch.view_as_real(torch.fft.rfft(frames)).square_()
    power = squares[..., 0] + squares[..., 1]
    # (..., 257) -> (..., F)
    mel = power.to(mel_filters.dtype) @ mel_filters
    # Kaldi's floor is the float32 epsilon; its energy floor concerns the unused energy column only.
    return mel.float().clamp_(min=torch.finfo(torch.float32).eps).log_()


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window (W) and the filters (257, F); constants rather than buffers, which a model's dtype would round.

    On CUDA the filters are float64: float32 products may run as TF32, which costs three digits.
    """
    window_function = torch.hann_window(WINDOW, periodic=False, device=device).pow(0.85)
    filters, _ = get_mel_banks(NUM_MEL_BINS, _FFT_SIZE, SAMPLE_RATE, _LOW_HZ, _HIGH_HZ, 100.0, -500.0, 1.0)
    # The filter bank ends below the Nyquist bin.
    filters = pad(filters, (0, 1)).T.contiguous()
    return window_function, filters.to(device, torch.float64 if device.type == "cuda" else torch.float32)

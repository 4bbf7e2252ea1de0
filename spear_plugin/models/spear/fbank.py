"""Log-mel features for a padded batch of waveforms, on the device of the waveforms.

Values are those of ``torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=128, dither=0, snip_edges=False,
high_freq=-400, energy_floor=1e-10)`` for each utterance alone: 25 ms Povey windows every 10 ms, DC offset removed,
pre-emphasis 0.97, power spectrum of 512 points, 128 mel bins between 20 and 7600 Hz, natural logarithm. There is no
normalisation, and the waveform stays in [-1, 1].

Letters: N batch, S samples, T frames, F mels, W samples of a window.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from spear_plugin.nn.log_mel import NUM_MEL_BINS as NUM_MEL_BINS
from spear_plugin.nn.log_mel import SAMPLE_RATE as SAMPLE_RATE
from spear_plugin.nn.log_mel import SHIFT, WINDOW, compute_log_mel

FBANK_PADDING: Final = math.log(1e-10)
"""The value of frames beyond an utterance's end (lhotse's padding, which SPEAR was trained with)."""

_NUM_BEFORE: Final = (WINDOW - SHIFT) // 2  # windows are centred on their 10 ms


def num_fbank_frames(num_samples: int) -> int:
    """Return the number of 10 ms frames for ``num_samples`` at 16 kHz, rounded half up."""
    return (num_samples + SHIFT // 2) // SHIFT


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
    if waveforms.dim() != 2 or waveforms.size(1) < WINDOW:
        raise ValueError(
            f"`waveforms` must be of shape (N, S) with at least one window of {WINDOW} samples, but has the shape "
            f"{tuple(waveforms.shape)} instead."
        )
    with torch.autocast(waveforms.device.type, enabled=False):
        # (N, S) -> (N, T, W)
        windows = _cut_windows(waveforms.float(), lengths)
        # (N, T, W) -> (N, T, F)
        fbank = compute_log_mel(windows)
    frame_lengths = (lengths + SHIFT // 2) // SHIFT
    is_padding = torch.arange(fbank.size(1), device=fbank.device) >= frame_lengths[:, None]
    return fbank.masked_fill_(is_padding[:, :, None], FBANK_PADDING), frame_lengths


def _cut_windows(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Return overlapping windows (N, T, W); samples outside of an utterance mirror it at its own two ends."""
    num_beyond = WINDOW // 2  # the last window ends at most half a window after the last sample
    steps = torch.arange(num_beyond, device=waveforms.device)
    ends = lengths[:, None] + steps
    mirrored = waveforms.gather(1, (lengths[:, None] - 1 - steps).clamp_(min=0))
    # (N, S) -> (N, 120 + S + 200)
    padded = torch.cat([waveforms[:, :_NUM_BEFORE].flip(1), pad(waveforms, (0, num_beyond))], dim=1)
    return padded.scatter_(1, _NUM_BEFORE + ends, mirrored).unfold(1, WINDOW, SHIFT)

"""Reading of audio files: any container, rate and channel count to mono float32 at one rate.

Letters: S samples, C channels.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import soxr
from numpy.typing import NDArray

from spear_plugin.data.audio_error import AudioError
from spear_plugin.data.decoders import G722_SUFFIX, open_audio
from spear_plugin.data.manifest import Seconds

__all__ = ["G722_SUFFIX", "AudioError", "AudioInfo", "inspect_audio", "read_audio", "resampled_length"]

CountT = TypeVar("CountT", int, NDArray[np.int64])


@final
@dataclass(frozen=True)
class AudioInfo:
    """What decoding a whole file has shown."""

    num_samples: int
    """Per channel, counted."""

    sample_rate: int
    """In Hz, as the file declares it."""

    num_channels: int


def resampled_length(num_samples: CountT, sample_rate: CountT, target_rate: int) -> CountT:
    """Return the number of samples after resampling, of one recording or of many.

    It is ``num_samples * target_rate / sample_rate``, halves rounded up, by integer arithmetic, so that manifests,
    readers and code lengths agree on every machine.
    """
    return (2 * num_samples * target_rate + sample_rate) // (2 * sample_rate)


def inspect_audio(path: Path) -> AudioInfo:
    """Decode the whole file and return its true length.

    :raises AudioError: If :func:`read_audio` could not read the whole file.
    """
    num_samples, num_channels = 0, 0

    with closing(open_audio(path)) as decoder:
        for block in decoder.blocks():  # (S, C)
            _check_finite(path, block)
            num_samples, num_channels = num_samples + block.shape[0], block.shape[1]

        _check_not_empty(path, num_samples)

        return AudioInfo(num_samples, decoder.sample_rate, num_channels)


def read_audio(
    path: Path, *, sample_rate: int = 16_000, start: Seconds = 0.0, duration: Seconds | None = None
) -> NDArray[np.float32]:
    """Return the mean of the channels at ``sample_rate`` Hz, shape (S,), full scale in [-1, 1].

    Samples ``round(start * r)`` to ``round(start * r) + round(duration * r)`` of the file (``r`` its own rate) are read
    and resampled with soxr (HQ); S is :func:`resampled_length` of their number. A segment is resampled by itself, as if
    there were silence around it.

    :param duration: None reads up to the end.
    :raises AudioError: If the file is missing, in no known format, cut off, empty, shorter than ``start + duration``,
        or holds NaN or infinite samples.
    """
    with closing(open_audio(path)) as decoder:
        rate = decoder.sample_rate
        first = round(start * rate)
        limit = None if duration is None else round(duration * rate)
        blocks = [_mix_down(block) for block in decoder.blocks(first, limit)]

    waveform = blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, dtype=np.float32), *blocks])  # (S,)

    # One sample: the two roundings above may add up beyond the end.
    if limit is not None and waveform.size + 1 < limit:
        raise AudioError(
            path,
            f"ends {(limit - waveform.size) / rate:.3f} s before the end of the segment "
            f"{start:.3f} s + {duration:.3f} s",
            "Restore the file or make the manifest anew.",
        )

    _check_not_empty(path, waveform.size)
    _check_finite(path, waveform)

    return _resample(waveform, rate, sample_rate, limit or waveform.size)


def _resample(waveform: NDArray[np.float32], rate: int, target_rate: int, num_samples: int) -> NDArray[np.float32]:
    if rate != target_rate:
        waveform = soxr.resample(waveform, rate, target_rate, quality="HQ")

    length = resampled_length(num_samples, rate, target_rate)

    if waveform.size < length:
        waveform = np.pad(waveform, (0, length - waveform.size))

    return np.ascontiguousarray(waveform[:length], dtype=np.float32)


def _mix_down(block: NDArray[np.float32]) -> NDArray[np.float32]:
    # (S, C) -> (S,)
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _check_finite(path: Path, samples: NDArray[np.float32]) -> None:
    # Without an array of answers: the largest is NaN where any is.
    if samples.size and not (math.isfinite(np.max(samples)) and math.isfinite(np.min(samples))):
        raise AudioError(path, "holds NaN or infinite samples")


def _check_not_empty(path: Path, num_samples: int) -> None:
    if num_samples == 0:
        raise AudioError(path, "decodes to no samples")

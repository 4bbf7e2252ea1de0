"""Reading of audio files: any container, rate and channel count to mono float32 at one rate.

libsndfile reads wav, flac, ogg (Vorbis and Opus), where it seeks to the sample, and mp3. PyAV (FFmpeg) reads the rest:
headerless G.722 and the containers that libsndfile does not know (m4a, webm, ...). Where seeking is not exact, a
segment costs the decoding of everything before it.

Letters: S samples, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar, final

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from spear_plugin.data.audio_error import AudioError
from spear_plugin.data.audio_shards import read_member
from spear_plugin.data.manifest import Seconds

__all__ = ["G722_SUFFIX", "AudioError", "AudioInfo", "inspect_audio", "read_audio", "resampled_length"]

G722_SUFFIX: Final = ".g722"

CountT = TypeVar("CountT", int, NDArray[np.int64])

# Encoders disagree by a block about priming and padding samples; only more than this counts as cut off.
_HEADER_TOLERANCE: Final[Seconds] = 0.05

# Nearly all files are one block, which saves a copy.
_BLOCK_SIZE: Final = 1 << 20

_SNDFILE_UNRECOGNISED_FORMAT: Final = 1

# libsndfile trusts the file's size more than a WAV header and says so only in its log.
_SHORT_WAV_DATA: Final = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

_PCM_16_STEP: Final = np.float32(1 / 32_768)

_WAV_FORMATS: Final = ("WAV", "WAVEX", "RF64")

# Written by programs that stream WAV and do not know the size in advance.
_WAV_STREAM_SIZE: Final = 0x7FFF_F000


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

    with closing(_open(path)) as decoder:
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
    with closing(_open(path)) as decoder:
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


def _to_float(block: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.float32]:
    return block if block.dtype == np.float32 else block * _PCM_16_STEP


def _check_finite(path: Path, samples: NDArray[np.float32]) -> None:
    # Without an array of answers: the largest is NaN where any is.
    if samples.size and not (math.isfinite(np.max(samples)) and math.isfinite(np.min(samples))):
        raise AudioError(path, "holds NaN or infinite samples")


def _check_not_empty(path: Path, num_samples: int) -> None:
    if num_samples == 0:
        raise AudioError(path, "decodes to no samples")


def _open(path: Path) -> _SoundFileDecoder | _PyAvDecoder:
    content = read_member(path)

    if content is None and not path.is_file():
        raise AudioError(path, "there is no such file", "Restore it or make the manifest anew.")

    if path.suffix.lower() == G722_SUFFIX:  # has no header that could be recognised
        return _PyAvDecoder(path, content, container_format="g722")

    try:
        return _SoundFileDecoder(path, content)
    except soundfile.LibsndfileError as ex:
        if ex.code != _SNDFILE_UNRECOGNISED_FORMAT:
            raise AudioError(path, f"cannot be opened: {ex.error_string.strip(' .')}") from ex

    return _PyAvDecoder(path, content)


@final
class _SoundFileDecoder:
    def __init__(self, path: Path, content: bytes | None) -> None:
        self._path = path
        self._file = soundfile.SoundFile(path if content is None else BytesIO(content))
        self.sample_rate: int = self._file.samplerate
        # mp3 frames need their predecessors: after a seek the first ones come out silent.
        self._can_seek: bool = self._file.format != "MP3"

        is_wav = self._file.format in _WAV_FORMATS
        # libsndfile takes three times as long for floats as for what is in the file.
        self._dtype = "int16" if is_wav and self._file.subtype == "PCM_16" else "float32"

        if is_wav and (truncation := _SHORT_WAV_DATA.search(self._file.extra_info)) is not None:
            claimed, present = (int(size) for size in truncation.groups())

            if present < claimed < _WAV_STREAM_SIZE:
                raise AudioError(path, f"is cut off: the header promises {claimed} bytes, {present} are there")

    def blocks(self, first: int = 0, limit: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield (S, C) from sample ``first`` on, at most ``limit`` samples."""
        num_samples: int = self._file.frames
        end = num_samples if limit is None else min(first + limit, num_samples)
        position = min(first, end) if self._can_seek else 0

        try:
            if position > 0:
                self._file.seek(position)

            while position < end:
                block = self._file.read(min(_BLOCK_SIZE, end - position), dtype=self._dtype, always_2d=True)
                if not len(block):
                    break

                yield _to_float(block[max(first - position, 0) :])
                position += len(block)
        except soundfile.LibsndfileError as ex:
            raise AudioError(self._path, f"is cut off or damaged: {ex.error_string.strip(' .')}") from ex

        if end - position > _HEADER_TOLERANCE * self.sample_rate:
            raise AudioError(
                self._path, f"is cut off or damaged: decoding stopped at sample {position} of {num_samples}"
            )

    def close(self) -> None:
        self._file.close()


@final
class _PyAvDecoder:
    def __init__(self, path: Path, content: bytes | None, container_format: str | None = None) -> None:
        self._path = path

        try:
            self._container = av.open(
                str(path) if content is None else BytesIO(content), mode="r", format=container_format
            )
        except (av.error.FFmpegError, OSError) as ex:
            raise AudioError(path, "is not audio in a format that libsndfile or FFmpeg reads") from ex

        if not self._container.streams.audio:
            raise AudioError(path, "holds no audio stream")

        self.sample_rate: int = self._container.streams.audio[0].rate

    def blocks(self, first: int = 0, limit: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Yield (S, C) from sample ``first`` on, at most ``limit`` samples; decodes from the beginning."""
        end = None if limit is None else first + limit
        position = 0

        for block in self._decode():
            yield block[max(first - position, 0) : None if end is None else max(end - position, 0)]
            position += len(block)

            if end is not None and position >= end:
                break

    def close(self) -> None:
        self._container.close()

    def _decode(self) -> Iterator[NDArray[np.float32]]:
        # Planar float, the layout and rate of the file.
        converter = av.AudioResampler(format="fltp")

        try:
            for frame in self._container.decode(audio=0):
                for converted in converter.resample(frame):
                    block: NDArray[Any] = converted.to_ndarray()  # (C, S)

                    yield block.T
        except (av.error.FFmpegError, OSError) as ex:
            raise AudioError(self._path, f"is cut off or damaged: {ex.strerror}") from ex

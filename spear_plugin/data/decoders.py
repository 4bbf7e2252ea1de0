"""Decoders of audio files: whole or from a sample on, in blocks.

libsndfile reads wav, flac, ogg (Vorbis and Opus), where it seeks to the sample, and mp3. PyAV (FFmpeg) reads the rest:
headerless G.722 and the containers that libsndfile does not know (m4a, webm, ...). Where seeking is not exact, a
segment costs the decoding of everything before it.

Letters: S samples, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final, final

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from spear_plugin.data.audio_error import AudioError
from spear_plugin.data.audio_shards import read_member

G722_SUFFIX: Final = ".g722"

_HEADER_TOLERANCE: Final = 0.05
"""Seconds: encoders disagree by a block about priming and padding samples; only more than this counts as cut off."""

# Nearly all files are one block, which saves a copy.
_BLOCK_SIZE: Final = 1 << 20

_SNDFILE_UNRECOGNISED_FORMAT: Final = 1

# libsndfile trusts the file's size more than a WAV header and says so only in its log.
_SHORT_WAV_DATA: Final = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

_PCM_16_STEP: Final = np.float32(1 / 32_768)

_WAV_FORMATS: Final = ("WAV", "WAVEX", "RF64")

# Written by programs that stream WAV and do not know the size in advance.
_WAV_STREAM_SIZE: Final = 0x7FFF_F000


def open_audio(path: Path) -> _SoundFileDecoder | _PyAvDecoder:
    """Return the decoder of a file; it must be closed.

    :raises AudioError: If the file is missing, in no known format or, as far as its header shows, cut off.
    """
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


def _to_float(block: NDArray[Any]) -> NDArray[np.float32]:
    return block if block.dtype == np.float32 else np.multiply(block, _PCM_16_STEP, dtype=np.float32)


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

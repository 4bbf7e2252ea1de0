"""FLAC as WAV: the same samples, whose reading needs no decoder."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Final

import soundfile

from recipes.corpus.console import CorpusError

_HEADER_SIZE: Final = 44

_SAMPLE_SIZE: Final = 2

_MAX_SIZE: Final = 1 << 31
"""WAV counts its bytes in 32 bits, and programs are known to take them as signed."""


def unpacked_size(path: Path) -> int | None:
    """Return the size in bytes that a FLAC file would have as WAV, or None if it must stay as it is.

    :raises OSError: If there is no such file.
    """
    path.stat()

    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        return None  # readers name what is wrong with it

    size: int = _HEADER_SIZE + info.frames * info.channels * _SAMPLE_SIZE

    return size if (info.format, info.subtype) == ("FLAC", "PCM_16") and size < _MAX_SIZE else None


def unpack_flac(path: Path) -> bytes:
    """Return a 16-bit FLAC file as WAV.

    :raises CorpusError: If it is damaged.
    """
    try:
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)  # (S, C)
    except soundfile.LibsndfileError as ex:
        problem = ex.error_string.strip(" .")
        raise CorpusError(f"{path}: cannot be decoded ({problem}). Restore it, or make the manifest anew.") from ex

    content = io.BytesIO()

    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(_SAMPLE_SIZE)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2", copy=False).tobytes())

    return content.getvalue()

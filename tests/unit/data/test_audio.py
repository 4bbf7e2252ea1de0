from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from spear_plugin.data.audio import AudioError, AudioInfo, inspect_audio, read_audio, resampled_length

RATE = 16_000

LOSSLESS = {"wav": "PCM_16", "flac": "PCM_16"}
LOSSY = {"ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}


def make_tone(seconds: float = 1.0, sample_rate: int = RATE, frequency_hz: float = 440.0) -> NDArray[np.float32]:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = 0.5 * np.sin(2 * np.pi * frequency_hz * time) * np.linspace(0.2, 1.0, time.size)

    return np.asarray(tone, dtype=np.float32)


def make_chirp() -> NDArray[np.float32]:
    time = np.arange(RATE) / RATE
    chirp = 0.5 * np.sin(2 * np.pi * (200 * time + 400 * np.square(time)))

    return np.asarray(chirp, dtype=np.float32)


def write(path: Path, samples: NDArray[np.float32], sample_rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, sample_rate, subtype=subtype, format="OGG" if path.suffix == ".opus" else None)

    return path


def write_with_ffmpeg(path: Path, samples: NDArray[np.float32], codec: str, container: str | None = None) -> Path:
    stream: Any  # typed as if it could be video

    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE, layout="mono")
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=RATE)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE

        for converted in resampler.resample(frame):
            output.mux(stream.encode(converted))

        output.mux(stream.encode(None))

    return path


@pytest.mark.parametrize(("suffix", "subtype"), {**LOSSLESS, **LOSSY}.items())
def test_each_format_is_read(tmp_path: Path, suffix: str, subtype: str) -> None:
    tone = make_tone()
    path = write(tmp_path / f"a.{suffix}", tone, subtype=subtype)

    waveform = read_audio(path)

    assert waveform.shape == (RATE,)
    assert waveform.dtype == np.float32
    # Lossy codecs blur the cut at the end.
    np.testing.assert_allclose(waveform[:-200], tone[:-200], atol=1e-4 if suffix in LOSSLESS else 0.05)
    assert inspect_audio(path) == AudioInfo(num_samples=RATE, sample_rate=RATE, num_channels=1)


@pytest.mark.parametrize(("name", "codec", "container"), [("a.g722", "g722", "g722"), ("a.m4a", "aac", None)])
def test_formats_that_libsndfile_does_not_know_are_read(
    tmp_path: Path, name: str, codec: str, container: str | None
) -> None:
    chirp = make_chirp()
    path = write_with_ffmpeg(tmp_path / name, chirp, codec, container)

    waveform = read_audio(path)
    middle = chirp[4000:-4000]
    delay = int(np.argmax(np.correlate(waveform, middle)))

    assert 4000 <= delay < 4000 + 2048  # codecs begin with priming samples
    assert np.corrcoef(waveform[delay:][: middle.size], middle)[0, 1] > 0.99
    assert inspect_audio(path).num_samples == waveform.size
    np.testing.assert_array_equal(read_audio(path, start=0.25, duration=0.5), waveform[RATE // 4 :][: RATE // 2])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_wav_gives_the_numbers_of_libsndfile(tmp_path: Path, container: str, subtype: str) -> None:
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, 2_000)
    noise[:2] = -1.0, 1.0
    soundfile.write(tmp_path / "a.wav", noise, RATE, subtype=subtype, format=container)
    waveform = read_audio(tmp_path / "a.wav")
    assert waveform.dtype == np.float32
    assert (waveform == soundfile.read(tmp_path / "a.wav", dtype="float32")[0]).all()


@pytest.mark.parametrize(("suffix", "subtype"), {**LOSSLESS, **LOSSY}.items())
def test_a_segment_equals_the_slice_of_the_whole(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = write(tmp_path / f"a.{suffix}", make_tone(3.0), subtype=subtype)

    segment = read_audio(path, start=1.3, duration=0.7)

    np.testing.assert_allclose(segment, read_audio(path)[20_800:32_000], atol=1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = make_tone(), make_tone(frequency_hz=600.0)
    path = write(tmp_path / "a.flac", np.stack([left, right], axis=1))

    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-4)
    assert inspect_audio(path).num_channels == 2


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_any_rate_becomes_the_wanted_rate(tmp_path: Path, sample_rate: int) -> None:
    path = write(tmp_path / "a.wav", make_tone(1.01, sample_rate), sample_rate)

    waveform = read_audio(path)

    assert waveform.size == resampled_length(round(1.01 * sample_rate), sample_rate, RATE)
    # Away from the ends it is the tone drawn at the wanted rate.
    np.testing.assert_allclose(waveform[500:-500], make_tone(1.01)[: waveform.size][500:-500], atol=2e-3)


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_the_length_after_resampling_is_the_rounded_quotient(tmp_path: Path, sample_rate: int) -> None:
    for num_samples in (3, 1_001, 4_410, 4_411):
        path = write(tmp_path / "a.wav", np.full(num_samples, 0.1, dtype=np.float32), sample_rate)
        expected = int(num_samples * RATE / sample_rate + 0.5)

        assert read_audio(path).size == resampled_length(num_samples, sample_rate, RATE) == expected


def cut_off(path: Path, fraction: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])

    return path


def test_each_bad_file_gives_one_line_with_path_and_problem(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "empty.g722").touch()
    (tmp_path / "empty.flac").touch()
    cases = {
        tmp_path / "missing.wav": "there is no such file",
        tmp_path / "text.wav": "is not audio in a format",
        tmp_path / "empty.g722": "decodes to no samples|is not audio",
        tmp_path / "empty.flac": "decodes to no samples",
        write(tmp_path / "silent.wav", np.empty(0, dtype=np.float32)): "decodes to no samples",
        cut_off(write(tmp_path / "short.wav", noise)): "is cut off",
        cut_off(write(tmp_path / "short.flac", noise)): "is cut off or damaged",
        cut_off(write(tmp_path / "short.mp3", noise, subtype="MPEG_LAYER_III")): "is cut off or damaged",
        write(tmp_path / "nan.wav", np.where(noise > 0.49, np.nan, noise), subtype="FLOAT"): "NaN or infinite",
        write(tmp_path / "inf.wav", np.where(noise > 0.49, np.inf, noise), subtype="FLOAT"): "NaN or infinite",
    }

    for path, message in cases.items():
        for read in (read_audio, inspect_audio):
            with pytest.raises(AudioError, match=message) as info:
                read(path)

            assert str(info.value).startswith(f"{path}: ")
            assert "\n" not in str(info.value)


def test_a_file_shorter_than_the_segment_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", make_tone(), subtype="VORBIS")

    with pytest.raises(AudioError, match=r"a.ogg: ends 0.500 s before the end of the segment 1.000 s \+ 0.500 s"):
        read_audio(path, start=1.0, duration=0.5)


def test_the_true_length_counts_not_the_header(tmp_path: Path) -> None:
    """A WAV written to a pipe promises 4 GB; its samples are fine."""
    path = write(tmp_path / "a.wav", make_tone())
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)

    assert inspect_audio(path).num_samples == RATE
    assert read_audio(path).size == RATE

"""The embedding network of aiSFX (ISMIR 2022), a CNN trained on sound-effect libraries, as a teacher at 25 Hz.

Letters: N batch, S samples, T frames, M mels, D width.

The network shrinks time by 8. At the hop of 20 ms used here that gives 6.25 frames a second, so each of the last two
poolings is done at both of its phases: the results are those of the network on four copies of the spectrogram, each two
frames (40 ms) later than the one before, interleaved (shift and stitch, at half of its cost). The analysis windows are
placed such that frame ``k`` is centred at ``(k + 0.5) / 25`` seconds.

Convolutions over time would let the padding in, hence utterances are embedded one by one.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Module
from torch.nn.functional import max_pool2d, pad, relu
from torchaudio.functional import melscale_fbanks
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, embed_one_by_one, full_precision
from spear_plugin.teachers.weights import name_weights

SAMPLE_RATE: Final = 44_100
FFT_SIZE: Final = 2048
NUM_MELS: Final = 96
TIME_REDUCTION: Final = 8
NUM_SHIFTS: Final = 4
HOP: Final = 882
SAMPLES_PER_FRAME: Final = HOP * TIME_REDUCTION // NUM_SHIFTS

# Largest value of the training spectrograms (`spectrogram_normalize` of the package).
SPECTROGRAM_SCALE: Final = 9.457798957824707

# SHA-256 of the packaged checkpoint.
KNOWN_WEIGHTS: Final = {"499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5": "aisfx"}

# The checkpoint holds, beside the tensors, a table with NumPy scalars.
_SAFE_GLOBALS: Final[list[Any]] = [
    (
        np._core.multiarray.scalar,  # type: ignore[attr-defined]
        "numpy.core.multiarray.scalar",
    ),
    np.dtype,
    type(np.dtype(np.int64)),
]


def load_aisfx_teacher(path: Path, layer: int | None = None) -> AiSfxTeacher:
    """Build the teacher from the package's ``checkpoint.pth``, read without executing code from it.

    :raises TeacherError: If the file is not such a checkpoint, or ``layer`` is not 0: there is one embedding.
    """
    if layer not in (None, 0):
        raise TeacherError(f"Teacher aisfx: `layer` must be 0, the one embedding it has, but is {layer}.")

    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            state_dict, _ = torch.load(path, map_location="cpu", weights_only=True)

        teacher = AiSfxTeacher(name_weights(path, KNOWN_WEIGHTS, default="aisfx"))
        prefix = "embedding_net."
        teacher.load_state_dict({k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)})
    except OSError as ex:
        raise TeacherError(f"{path}: the aiSFX checkpoint cannot be read: {ex.strerror}. Check the path.") from ex
    except (EOFError, UnpicklingError, RuntimeError, ValueError, TypeError) as ex:
        reason = str(ex).partition("\n")[0]
        raise TeacherError(f"{path}: must be a complete aiSFX checkpoint, but is not: {reason}. Get it again.") from ex

    return teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return] # faster on a CPU


@final
class AiSfxTeacher(Teacher):
    """Mean over frequency of the last block's features; the frames are ``samples // 1764``."""

    def __init__(self, weights: str) -> None:
        super().__init__(weights, 0, dim=512, frame_rate_hz=SAMPLE_RATE / SAMPLES_PER_FRAME, sample_rate=SAMPLE_RATE)
        self.conv_block1 = _ConvBlock(1, 64)
        self.conv_block2 = _ConvBlock(64, 128)
        self.conv_block3 = _ConvBlock(128, 256)
        self.conv_block4 = _ConvBlock(256, 512)
        self.mel_filters: Tensor
        self.register_buffer("mel_filters", _create_mel_filters(), persistent=False)

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_samples // SAMPLES_PER_FRAME

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        return embed_one_by_one(self._embed_utterance, waveforms, lengths, self.dim)

    def _embed_utterance(self, waveform: Tensor) -> Tensor:
        num_cells = -(-max(self.num_frames(waveform.size(1)), 1) // NUM_SHIFTS)

        # (M, 8 cells + 6) -> (1, 1, 8 cells + 6, M)
        with full_precision(waveform):
            x = self._extract_spectrogram(waveform.squeeze(0), num_cells).T[None, None]

        # -> (1, 64, 4 cells + 3, M / 2) -> (2, 128, 2 cells + 1, M / 4) -> (4, 256, cells, M / 8) -> (4, D, cells)
        x = max_pool2d(self.conv_block1(x), 2)
        x = _pool_at_both_phases(self.conv_block2(x))
        x = _pool_at_both_phases(self.conv_block3(x))
        x = self.conv_block4(x).mean(dim=-1)

        # (4, D, cells) -> (cells, 4, D) -> (1, T, D)
        frames: Tensor = x.permute(2, 0, 1).flatten(0, 1).unsqueeze(0)

        return frames

    def _extract_spectrogram(self, waveform: Tensor, num_cells: int) -> Tensor:
        """Return (M, 8 cells + 6); frame ``i`` is centred ``i - 2.5`` hops after the start of the waveform."""
        waveform = waveform / waveform.abs().amax().clamp(min=1e-6)

        # The first cell of shift 0 starts 3 frames before the output frame that it is centred on.
        num_spectra = TIME_REDUCTION * num_cells + TIME_REDUCTION - TIME_REDUCTION // NUM_SHIFTS
        left = (FFT_SIZE - HOP) // 2 + 3 * HOP
        right = FFT_SIZE + (num_spectra - 1) * HOP - left - waveform.size(0)
        window = torch.hann_window(FFT_SIZE, device=waveform.device)
        spectrum = torch.stft(
            pad(waveform, (left, right)), FFT_SIZE, HOP, window=window, center=False, return_complex=True
        )

        # (FFT_SIZE / 2 + 1, frames) -> (M, frames)
        return (self.mel_filters @ spectrum.abs().square() * 1e4 + 1.0).log10() / SPECTROGRAM_SCALE


@final
class _ConvBlock(Module):
    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(input_dim, output_dim, kernel_size=3, padding=1, bias=False)
        self.conv2 = Conv2d(output_dim, output_dim, kernel_size=3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(output_dim)
        self.bn2 = BatchNorm2d(output_dim)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))

        return relu(self.bn2(self.conv2(x)))


def _pool_at_both_phases(x: Tensor) -> Tensor:
    """Halve time (odd) and frequency, from the first and from the second frame on: (N, ...) to a batch of 2N."""
    num_frames = x.size(2) - 1

    return torch.cat([max_pool2d(x[:, :, phase : phase + num_frames], 2) for phase in (0, 1)])


def _create_mel_filters() -> Tensor:
    """Return (M, FFT_SIZE / 2 + 1) triangles on the HTK scale, each of unit sum (``norm=1`` of librosa)."""
    filters = melscale_fbanks(FFT_SIZE // 2 + 1, 0.0, SAMPLE_RATE / 2, NUM_MELS, SAMPLE_RATE, mel_scale="htk").T

    return filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)  # type: ignore[no-any-return]

"""Log-mel energies as a teacher without weights: 128 mel bins, two frames of 10 ms side by side, at 50 Hz.

For k-means on spectra (the first iteration of HuBERT uses MFCC) and for BEST-RQ. The features are those that SPEAR's
student reads (``torchaudio.compliance.kaldi.fbank``), utterance by utterance.

Letters: S samples, F frames of 10 ms, M mels, T frames of 20 ms.
"""

from __future__ import annotations

from typing import Final, final

from torch import Tensor
from torchaudio.compliance.kaldi import fbank
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, embed_one_by_one, full_precision

SAMPLE_RATE: Final = 16_000
NUM_MELS: Final = 128
SAMPLES_PER_FRAME: Final = 320
WINDOW: Final = 400
"""Samples that a spectrum sees; an utterance must have as many."""


def load_log_mel_teacher(layer: int | None = None) -> LogMelTeacher:
    """Build the teacher.

    :raises TeacherError: If ``layer`` is not 0.
    """
    if layer not in (None, 0):
        raise TeacherError(f"Teacher log_mel: `layer` must be 0, the energies themselves, but is {layer}.")

    return LogMelTeacher()


@final
class LogMelTeacher(Teacher):
    """128 log-mel energies of two successive frames; the frames are ``samples // 320``, none below 400 samples."""

    def __init__(self) -> None:
        super().__init__(
            "log_mel_2x128", 0, dim=2 * NUM_MELS, frame_rate_hz=SAMPLE_RATE / SAMPLES_PER_FRAME, sample_rate=SAMPLE_RATE
        )

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_samples // SAMPLES_PER_FRAME if num_samples >= WINDOW else 0

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        lengths = [n if self.num_frames(n) > 0 else 0 for n in lengths]

        return embed_one_by_one(self._compute_energies, waveforms, lengths, self.dim)

    def _compute_energies(self, waveform: Tensor) -> Tensor:
        num_frames = self.num_frames(waveform.size(1))
        with full_precision(waveform):
            # (1, S) -> (F, M)
            energies: Tensor = fbank(
                waveform, num_mel_bins=NUM_MELS, dither=0.0, snip_edges=False, high_freq=-400.0, energy_floor=1e-10
            )

        # (F, M) -> (1, T, 2 M)
        return energies[: 2 * num_frames].reshape(1, num_frames, 2 * NUM_MELS)

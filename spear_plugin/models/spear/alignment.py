"""From the frames of teacher codes to the frames of the encoder.

Both sides start together; the encoder has a few frames less because its front end uses no padding.

Letters: N batch, T encoder frames, C code frames, K codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.nn.functional import pad

IGNORED_CODE: Final = -100
"""Marks frames without a target."""


@dataclass(frozen=True, kw_only=True)
class CodeAlignment:
    """How often a code frame is repeated, or how many are stacked, to get one encoder frame."""

    num_repeats: int = 1
    num_stacked: int = 1

    @staticmethod
    def between(frame_rate_hz: float, encoder_frame_rate_hz: float) -> CodeAlignment:
        """Return the alignment of codes at ``frame_rate_hz``, for example 2 repeats of 25 Hz codes at 50 Hz.

        Raises:
            ValueError: If neither rate is a multiple of the other.
        """
        ratio = frame_rate_hz / encoder_frame_rate_hz
        num_repeats, num_stacked = max(1, round(1 / ratio)), max(1, round(ratio))
        if abs(ratio * num_repeats / num_stacked - 1) > 1e-6:
            raise ValueError(
                f"`frame_rate_hz` must be a multiple or a fraction of the encoder's {encoder_frame_rate_hz:g} Hz, but "
                f"is {frame_rate_hz:g} instead."
            )
        return CodeAlignment(num_repeats=num_repeats, num_stacked=num_stacked)

    def __call__(self, codes: Tensor, num_frames: int) -> Tensor:
        """Repeat or stack codes, then cut or fill them to the encoder's number of frames.

        Args:
            codes: (N, C, K) integers, :data:`IGNORED_CODE` beyond an utterance's end.
            num_frames: T.

        Returns:
            (N, T, K * ``num_stacked``) int64; a stack holds all codebooks of its first frame, then those of the next.
            Encoder frames without codes hold :data:`IGNORED_CODE`.
        """
        # (N, C, K) -> (N, C * num_repeats, K)
        codes = codes.long()
        if self.num_repeats > 1:
            codes = codes.repeat_interleave(self.num_repeats, dim=1)
        # -> (N, T * num_stacked, K); a negative amount cuts
        num_missing = num_frames * self.num_stacked - codes.size(1)
        codes = pad(codes, (0, 0, 0, num_missing), value=IGNORED_CODE)
        # -> (N, T, K * num_stacked)
        return codes.reshape(codes.size(0), num_frames, codes.size(2) * self.num_stacked)

"""A front end without weights: log-mel energies instead of convolutions (as in MelHuBERT, arXiv 2211.09944).

Convolutions have to learn from hours of speech what a spectrum is; a spectrum knows.

Letters: N batch, S samples, T frames, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from spear_plugin.models.spidr.frontend import FrameGeometry
from spear_plugin.nn.log_mel import NUM_MEL_BINS, SHIFT, WINDOW, compute_log_mel

LOG_MEL_GEOMETRY: Final = FrameGeometry(kernel_sizes=(WINDOW, 2), strides=(SHIFT, 2))

NUM_LOG_MEL_CHANNELS: Final = 2 * NUM_MEL_BINS

# Of standardized speech, roughly. There is no norm of each frame, which would take away how loud it is.
_MEAN: Final = -2.0
_SCALE: Final = 4.0


@final
class LogMelExtractor(Module):
    """Two successive log-mel spectra side by side, 25 ms each and 10 ms apart; 50 frames a second.

    Nothing is mirrored at the ends of a recording and a frame sees no padding, so it is the same in any batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.geometry = LOG_MEL_GEOMETRY

    @override
    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        """Return (N, T, C) float32 for ``waveforms`` (N, S), standardized."""
        pieces = waveforms.float().unfold(1, self.geometry.receptive_field, self.geometry.hop)
        with torch.autocast(waveforms.device.type, enabled=False):
            # (N, T, 560) -> (N, T, 2, 400) -> (N, T, 2, 128) -> (N, T, C)
            frames = compute_log_mel(pieces.unfold(2, WINDOW, SHIFT)).flatten(2)
        return (frames - _MEAN) / _SCALE

    if TYPE_CHECKING:
        __call__ = forward

"""When the frames of SPEAR are."""

from __future__ import annotations

from typing import Final

from spear_plugin.models.spear.config import SpearConfig
from spear_plugin.nn.timing import FrameTiming

SPEAR_TIMING: Final = FrameTiming(50.0, first_centre=0.045)
"""Centres of the receptive fields. The fbank's frame f is centred at (f + 0.5) 10 ms. The front end's convolutions over
time have no padding, width 3 and the strides 1, 2, 1: output t sees the frames 2t to 2t + 8, centre 2t + 4, which is at
20 t + 45 ms. Everything after them is symmetric in time."""


def output_timing(config: SpearConfig) -> FrameTiming:
    """Return when the frames of the encoder's output are; those of its layers are at :data:`SPEAR_TIMING`."""
    factor = config.zipformer.output_downsampling_factor
    # A mean of `factor` frames is centred between them.
    first_centre = SPEAR_TIMING.first_centre + 0.5 * (factor - 1) / SPEAR_TIMING.rate_hz
    return FrameTiming(SPEAR_TIMING.rate_hz / factor, first_centre)

"""When the frames of SpidR and DinoSR are."""

from __future__ import annotations

from spear_plugin.models.spidr.frontend import SAMPLE_RATE, FrameGeometry
from spear_plugin.nn.timing import FrameTiming


def spidr_timing(geometry: FrameGeometry) -> FrameTiming:
    """Return the centres of the receptive fields: 50 a second, the first one at 12.5 ms, in the paper."""
    return FrameTiming(SAMPLE_RATE / geometry.hop, 0.5 * geometry.receptive_field / SAMPLE_RATE)

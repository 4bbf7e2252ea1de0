"""Small models of both families, and recordings."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spidr import SpidrModel
from tests.unit.models.spear.makers import create_small_model as create_small_spear
from tests.unit.models.spidr.makers import create_small_model as create_small_spidr

FAMILIES: Final = ("spear", "spear_25hz", "spidr")


def create_model(family: str) -> SpearModel | SpidrModel:
    """Return a model in evaluation mode, the same one each time."""
    if family == "spidr":
        return create_small_spidr().eval().requires_grad_(False)
    factor = 2 if family == "spear_25hz" else 1
    return create_small_spear(output_downsampling_factor=factor).eval().requires_grad_(False)


def create_recordings(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return noise whose loudness changes, with noise beyond the lengths, where nobody should look, and the lengths."""
    generator = torch.Generator().manual_seed(1)
    waveforms = 0.1 * torch.randn((len(lengths), max(lengths)), generator=generator)
    loudness = 1.0 + 0.9 * torch.sin(torch.arange(max(lengths)) / 3000.0)
    return waveforms * loudness, torch.tensor(lengths)


def tensors_of(features: object) -> dict[str, Tensor]:
    """Return all features by name: ``last``, if there is one, and the layers."""
    tensors = {f"layer_{i}": layer for i, layer in enumerate(getattr(features, "layers"))}  # noqa: B009
    last: Tensor | None = getattr(features, "last", None)
    return tensors if last is None else {"last": last, **tensors}

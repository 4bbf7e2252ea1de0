"""Runs of small models of both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_plugin.models.spear import SpearModel, get_spear_model_hub
from spear_plugin.models.spidr import standardize_waveforms
from tests.recipes.common import create_small_spidr_model, find_run_card, save_run, save_spidr_run
from tests.unit.models.spear.test_released import narrow_config


def save_checkpoints(folder: Path, **sizes: Any) -> dict[str, Path]:
    """Write a run of each family; the sizes are those of SPEAR's Zipformer."""
    return {
        "spear": save_run(folder / "spear", seed=1, config=narrow_config(**sizes)),
        "spidr": save_spidr_run(folder / "spidr"),
    }


def extract(checkpoint: Path, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return output (T, D) and layers of one waveform (S,) by the model itself."""
    waveforms, lengths = waveform[None], torch.tensor([waveform.numel()])
    with torch.no_grad():
        if checkpoint.name == "spidr":
            layers = create_small_spidr_model().extract_features(standardize_waveforms(waveforms, lengths), None).layers
            return layers[-1][0], [layer[0] for layer in layers]
        model = get_spear_model_hub().load_model(find_run_card(checkpoint, "last_checkpoint")).eval()
        assert isinstance(model, SpearModel)
        features = model.extract_features(waveforms, lengths)
        return features.last[0], [layer[0] for layer in features.layers]


def draw_waveforms(*lengths: int) -> list[Tensor]:
    """Return noise in [-1, 1], louder and louder."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.linspace(0.1, 1.0, n) * (2.0 * torch.rand(n, generator=generator) - 1.0).clamp(-0.9, 0.9) for n in lengths
    ]

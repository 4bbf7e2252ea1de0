"""Small corpora and options for fine-tuning, and encoders to begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
import torch
from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.runtime.dependency import get_dependency_resolver

from spear_plugin.data.manifest import ManifestRow, write_manifest
from spear_plugin.models.spidr import SPIDR_FAMILY, get_spidr_model_hub
from tests.recipes.common import save_run
from tests.unit.models.spear.makers import small_config as small_spear
from tests.unit.models.spidr.makers import small_config as small_spidr

SHORT_RUN: Final = (
    "dataset.max_batch_seconds=4",
    "dataset.num_buckets=2",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=2",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "regime.keep_last_n_checkpoints=null",
    "encoder.frozen_steps=3",
    "common.metric_recorders.tensorboard.enabled=false",
)


def write_tones(
    folder: Path, names: list[str], *, text: str = "", label: str = "", seconds: float = 1.0
) -> list[ManifestRow]:
    """Write noisy tones, and return their rows, all with one text and label."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        path = folder / f"{name}.flac"
        time = np.arange(round(seconds * 16_000)) / 16_000
        noise = np.random.default_rng(len(name)).normal(0.0, 0.05, time.size)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440.0 * time) + noise, 16_000)
        rows.append(
            ManifestRow(
                id=name, path=path, num_samples=time.size, sample_rate=16_000, domain="speech", text=text, label=label
            )
        )
    return rows


def write_corpus(path: Path, rows: list[ManifestRow]) -> str:
    """Write a manifest and return the list of this one corpus as a line of YAML."""
    write_manifest(path, rows)
    return f"[{{name: {path.stem}, manifest: {path}}}]"


def save_spear_run(folder: Path, *, seed: int = 1) -> Path:
    """Write a small random SPEAR model as the checkpoint of a pre-training run."""
    return save_run(folder, seed=seed, config=replace(small_spear(), reference_padding=False))


def save_spidr_run(folder: Path, *, seed: int = 1) -> Path:
    """Write a small random SpidR model as the checkpoint of a pre-training run."""
    config = small_spidr()
    torch.manual_seed(seed)
    model = get_spidr_model_hub().create_new_model(config)
    dumper = get_dependency_resolver().resolve(ModelMetadataDumper)  # type: ignore[type-abstract]
    dumper.dump(folder / "checkpoints", SPIDR_FAMILY, config)
    step = folder / "checkpoints" / "step_2" / "model" / "pp_00" / "tp_00"
    step.mkdir(parents=True)
    torch.save(model.state_dict(), step / "sdp_00.pt")
    return folder

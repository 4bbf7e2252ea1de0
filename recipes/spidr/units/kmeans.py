"""Clusters of a layer's features. Letters: M frames, V clusters, D width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recipes.common import read_batches
from recipes.spidr.units.config import SpidrUnitsConfig
from recipes.spidr.units.maker import FrameReader
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.seeds import derive_seed

KMEANS_FILE: Final = "kmeans.safetensors"

_BATCH_SIZE: Final = 4096


def fit_clusters(
    reader: FrameReader, rows: Sequence[ManifestRow], config: SpidrUnitsConfig, device: torch.device
) -> Tensor:
    """Return the centres (V, D) of clusters of the features of a random part of the corpus.

    Raises:
        RecipeError: If it has fewer frames than there shall be clusters.
    """
    section, seed = config.kmeans, config.common.seed
    chosen, seconds = [], 0.0
    for row in sorted(rows, key=lambda row: derive_seed("kmeans", seed, row.id)):
        if seconds >= section.fit_seconds:
            break
        chosen.append(row)
        seconds += row.duration
    log.info("Fitting {} clusters to {} recordings, {:.1f} s.", section.num_clusters, len(chosen), seconds)

    features = [torch.empty((0, reader.dim))]
    for _, reads in read_batches(
        chosen, config.corpus, sample_rate=reader.sample_rate, num_frames=reader.num_frames, reader=reader.name
    ):
        if waveforms := [read for read in reads if isinstance(read, Tensor)]:
            lengths = torch.tensor([waveform.numel() for waveform in waveforms])
            with torch.inference_mode():
                read = reader.read(pad_sequence(waveforms, batch_first=True).to(device), lengths)
            features += [frames.float().cpu() for frames in read]
    frames = torch.cat(features)
    if frames.size(0) < section.num_clusters:
        raise RecipeError(
            f"`kmeans.num_clusters` must be at most the {frames.size(0)} frames they are fitted to, but "
            f"is {section.num_clusters}. Raise `kmeans.fit_seconds`, or take a larger corpus."
        )
    kmeans = MiniBatchKMeans(section.num_clusters, batch_size=_BATCH_SIZE, n_init=3, random_state=seed)
    kmeans.fit(frames.numpy())
    return torch.from_numpy(kmeans.cluster_centers_).float()


def write_clusters(path: Path, centres: Tensor) -> None:
    """Write centres (V, D)."""
    with atomic_file(path) as temporary:
        save_file({"centres": centres.contiguous()}, temporary)


def read_clusters(path: Path, dim: int) -> Tensor:
    """Return the centres (V, D) in a file.

    Raises:
        RecipeError: If the file is missing or damaged, or its clusters are of another width than ``dim``.
    """
    try:
        centres = load_file(path)["centres"]
    except (KeyError, OSError, SafetensorError) as ex:
        raise RecipeError(
            f"{path}: cannot be read as clusters ({ex}). `kmeans.path` must name the {KMEANS_FILE} of another run."
        ) from None
    if centres.dim() != 2 or centres.size(1) != dim:
        raise RecipeError(
            f"{path}: has clusters of shape {tuple(centres.shape)}, but features have the width {dim}. Take the same "
            "model and layer."
        )
    return centres

"""Models that fairseq2 knows: by card name, YAML file with a card, or output folder of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from fairseq2.assets import AssetCard, AssetCardError, AssetMetadataError, FileAssetMetadataLoader, StandardAssetStore
from fairseq2.checkpoint import ModelMetadataLoader
from fairseq2.model_checkpoint import CorruptModelCheckpointError
from fairseq2.models.hub import ModelNotKnownError, load_model
from fairseq2.runtime.dependency import get_dependency_resolver
from torch.nn import Module

from spear_plugin.teachers.base import TeacherError


def load_asset(name: str) -> Module:
    """Load a model in float32 to the CPU; ``init_fairseq2()`` (or a recipe) must have run before.

    :param name: Name of an asset card, a YAML file with one card (whose ``checkpoint`` may be relative to it), or the
        output folder of a run, whose last checkpoint is taken.

    :raises TeacherError: If there is no such model, or its checkpoint is damaged.
    """
    try:
        return load_model(_find_card(name), device=torch.device("cpu"), dtype=torch.float32)
    except (ModelNotKnownError, AssetCardError, AssetMetadataError, CorruptModelCheckpointError, OSError) as ex:
        raise TeacherError(f"{name}: the fairseq2 asset cannot be loaded: {ex} Check `teacher.path`.") from ex


def digest_weights(model: Module) -> str:
    """Return eight hexadecimal digits that change with any weight, for the name of a model that has none of its own."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    return digest.hexdigest()[:8]


def _find_card(name: str) -> AssetCard | str:
    if Path(name).is_dir():
        return _find_last_checkpoint(Path(name))

    return _read_card(Path(name)) if Path(name).suffix in (".yaml", ".yml") else name


def _read_card(file: Path) -> AssetCard:
    loader = get_dependency_resolver().resolve(FileAssetMetadataLoader)  # type: ignore[type-abstract]
    provider = loader.load(file)
    if len(provider.asset_names) != 1:
        raise TeacherError(f"{file}: must hold one asset card, but holds {len(provider.asset_names)}.")

    (name,) = provider.asset_names

    return AssetCard(name, provider.maybe_get_metadata(name) or {})


def _find_last_checkpoint(folder: Path) -> AssetCard:
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    card = None
    if (checkpoints / "model.yaml").exists():
        loader = get_dependency_resolver().resolve(ModelMetadataLoader)  # type: ignore[type-abstract]
        card = StandardAssetStore([loader.load(checkpoints)]).maybe_retrieve_card("last_checkpoint")

    if card is None:
        raise TeacherError(
            f"{folder}: must be the output folder of a run, but holds no finished checkpoint. Train first."
        )

    return card

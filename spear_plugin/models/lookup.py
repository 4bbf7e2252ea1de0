"""Models by what a user calls them: a card's name, a run's folder, or a folder of SPEAR's released layout."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from fairseq2.assets import (
    AssetCard,
    AssetCardError,
    AssetDownloadError,
    AssetMetadataError,
    AssetMetadataProvider,
    StandardAssetStore,
    get_asset_store,
)
from fairseq2.checkpoint import ModelMetadataLoader
from fairseq2.error import OperationalError
from fairseq2.model_checkpoint import CorruptModelCheckpointError
from fairseq2.models import ModelGatedError, ModelHub
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import get_dependency_resolver
from torch.nn import Module

from spear_plugin.models.spear import (
    RELEASED_CONFIG_FILE,
    SPEAR_FAMILY,
    SpearModel,
    get_spear_model_hub,
    released_card,
)
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel, get_spidr_model_hub

ModelT = TypeVar("ModelT", bound=Module)
ConfigT = TypeVar("ConfigT")

_LOAD_ERRORS: Final = (
    AssetCardError,
    AssetDownloadError,
    AssetMetadataError,
    CorruptModelCheckpointError,
    ModelGatedError,
    OperationalError,
    OSError,
)


def find_card(reference: str, where: str, *families: str) -> AssetCard:
    """Return the card of a model of one of some families.

    Args:
        reference: Name of a card; folder of a run, whose last checkpoint is meant; ``RUN/checkpoints/step_N``; or, of
            SPEAR, folder with ``config.json`` and ``model.safetensors``, as the authors release their models.
        where: The configuration's key, which messages begin with.
        families: The families.

    Raises:
        RecipeError: If there is no such model, or it is of another family.
        ReleasedModelError: If a folder of the released layout is damaged.
    """
    folder = Path(reference)
    if SPEAR_FAMILY in families and (folder / RELEASED_CONFIG_FILE).is_file():
        return released_card(folder)
    if folder.is_dir():
        if (card := _checkpoint_card(folder)) is None:
            raise RecipeError(
                f"{where}: {folder} holds no finished checkpoint of a run. Train first, or name another folder."
            )
    else:
        card = _named_card(reference, where)

    if (family := family_of(card)) not in families:
        raise RecipeError(
            f"{where}: must be a model of the family {' or '.join(families)}, but '{reference}' is of "
            f"'{family or 'no family'}'."
        )
    return card


def family_of(card: AssetCard) -> str:
    """Return the family of a model, or nothing if the card is of none."""
    field = card.maybe_get_field("model_family")
    return str(field.value) if field is not None else ""


def load_metadata(checkpoints: Path) -> AssetMetadataProvider:
    """Return the cards that fairseq2 makes for the checkpoints in a folder.

    Raises:
        RecipeError: If their ``model.yaml`` is damaged.
    """
    loader = get_dependency_resolver().resolve(ModelMetadataLoader)  # type: ignore[type-abstract]
    try:
        return loader.load(checkpoints)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{checkpoints / 'model.yaml'} cannot be read: {_innermost(ex)}") from None


def load_config(hub: ModelHub[Any, ConfigT], card: AssetCard, name: str) -> ConfigT:
    """Return the configuration of a model of any family.

    Raises:
        RecipeError: If the card is damaged.
    """
    try:
        return hub.get_model_config(card)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{name}: {_innermost(ex)}") from None


def load_encoder(card: AssetCard, name: str, *, device: torch.device) -> SpearModel | SpidrModel:
    """Load a model of SPEAR or SpidR that messages call ``name``.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its card.
    """
    is_spidr = family_of(card) == SPIDR_FAMILY
    hub: ModelHub[Any, Any] = get_spidr_model_hub() if is_spidr else get_spear_model_hub()
    model: SpearModel | SpidrModel = load_model(hub, card, name, device=device)
    return model


def load_model(
    hub: ModelHub[ModelT, Any], card: AssetCard, name: str, *, device: torch.device, config: object = None
) -> ModelT:
    """Load a model of any family, with another configuration than its card's if one is given.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its configuration.
    """
    try:
        return hub.load_model(card, device=device, config=config)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{name} cannot be loaded: {_innermost(ex)}") from None


def weights_digest(module: Module) -> str:
    """Return 16 digits that tell the weights of a model from others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _named_card(name: str, where: str) -> AssetCard:
    try:
        card = get_asset_store().maybe_retrieve_card(name)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{where}: {_innermost(ex)}") from None
    if card is None:
        raise RecipeError(
            f"{where}: must be the name of a card, or the folder of a run or of a released model, but '{name}' is "
            "neither."
        )
    return card


def _checkpoint_card(folder: Path) -> AssetCard | None:
    """Return the card that fairseq2 makes for a step of a run, or for its last, or None if there is no step."""
    checkpoints, name = folder, "last_checkpoint"
    if re.fullmatch(r"step_\d+", folder.name) and (folder.parent / "model.yaml").exists():
        checkpoints, name = folder.parent, f"checkpoint_{folder.name}"
    elif (folder / "checkpoints").is_dir():
        checkpoints = folder / "checkpoints"
    if not (checkpoints / "model.yaml").exists():
        return None
    return StandardAssetStore([load_metadata(checkpoints)]).maybe_retrieve_card(name)


def _innermost(error: BaseException) -> str:
    """Return the first line of the innermost cause, the one that says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).partition("\n")[0]

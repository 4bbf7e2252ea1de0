"""Models by what a user calls them: a card's name, a run's folder, or a folder of SPEAR's released layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
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
from fairseq2.utils.structured import ValueConverter
from fairseq2.utils.yaml import YamlDumper
from torch.nn import Module

from spear_plugin.data.files import atomic_file
from spear_plugin.models.spear import (
    RELEASED_CONFIG_FILE,
    SPEAR_FAMILY,
    SpearConfig,
    SpearModel,
    get_spear_model_hub,
    released_card,
)
from spear_plugin.models.spidr import SpidrModel, get_spidr_model_hub

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


def find_spear_card(reference: str, where: str) -> AssetCard:
    """Return the card of a SPEAR model.

    Args:
        reference: Name of a card; folder of a run, whose last checkpoint is meant; or folder with ``config.json`` and
            ``model.safetensors``, as the authors release their models.
        where: The configuration's key, which messages begin with.

    Raises:
        RecipeError: If there is no such model, or it is of another family.
        ReleasedModelError: If a folder of the released layout is damaged.
    """
    return find_card(reference, where, SPEAR_FAMILY)


def find_card(reference: str, where: str, *wanted_families: str) -> AssetCard:
    """Return the card of a model of one of some families.

    Args:
        reference: Name of a card; folder of a run, whose last checkpoint is meant; or, if SPEAR is among the families,
            folder of a model in its authors' layout.
        where: The configuration's key, which messages begin with.
        wanted_families: The families.

    Raises:
        RecipeError: If there is no such model, or it is of another family.
        ReleasedModelError: If a folder of the released layout is damaged.
    """
    folder = Path(reference)
    if SPEAR_FAMILY in wanted_families and (folder / RELEASED_CONFIG_FILE).is_file():
        return released_card(folder)
    if folder.is_dir():
        if (card := _last_checkpoint_card(folder)) is None:
            raise RecipeError(
                f"{where}: {folder} holds no finished checkpoint of a run. Train first, or name another folder."
            )
    else:
        card = _named_card(reference, where)

    if (family := family_of(card)) not in wanted_families:
        raise RecipeError(
            f"{where}: must be a model of the family {' or '.join(wanted_families)}, but '{reference}' is of "
            f"'{family or 'no family'}'."
        )
    return card


def family_of(card: AssetCard) -> str:
    """Return the family of a model, or nothing if the card is of none."""
    field = card.maybe_get_field("model_family")
    return str(field.value) if field is not None else ""


def default_model_name(folder: Path) -> str:
    """Return a name for the card of the model that a recipe writes to a folder."""
    return re.sub(r"\W+", "_", f"spear_{folder.resolve().name}")


def run_folder_of(card: AssetCard) -> Path | None:
    """Return the output folder of the run that a card of :func:`find_spear_card` is a checkpoint of, or None."""
    checkpoint = card.maybe_get_field("checkpoint")
    if card.base is None or checkpoint is None or not isinstance(checkpoint.value, str):
        return None
    # RUN/checkpoints/step_N/model
    folder = Path(checkpoint.value).parents[2]
    return folder if (folder / "checkpoints" / "model.yaml").is_file() else None


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


def load_spear_config(card: AssetCard, name: str) -> SpearConfig:
    """Return the configuration of a model that messages call ``name``.

    Raises:
        RecipeError: If the card is damaged.
    """
    return load_config(get_spear_model_hub(), card, name)


def load_config(hub: ModelHub[Any, ConfigT], card: AssetCard, name: str) -> ConfigT:
    """Return the configuration of a model of any family.

    Raises:
        RecipeError: If the card is damaged.
    """
    try:
        return hub.get_model_config(card)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{name}: {_innermost(ex)}") from None


def load_spear_model(card: AssetCard, name: str, *, device: torch.device) -> SpearModel:
    """Load a model that messages call ``name``.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its card.
    """
    return load_model(get_spear_model_hub(), card, name, device=device)


def load_spidr_model(card: AssetCard, name: str, *, device: torch.device) -> SpidrModel:
    """Load a SpidR or DinoSR model that messages call ``name``.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its card.
    """
    return load_model(get_spidr_model_hub(), card, name, device=device)


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


def write_spear_card(path: Path, name: str, config: SpearConfig, checkpoint: str, extra: Mapping[str, object]) -> None:
    """Write the card of a SPEAR model; arguments are those of :func:`write_card`."""
    write_card(path, name, SPEAR_FAMILY, config, checkpoint, extra)


def write_card(
    path: Path, name: str, family: str, config: object, checkpoint: str, extra: Mapping[str, object]
) -> None:
    """Write the card of a model.

    Args:
        path: The file.
        name: The model's name.
        family: The model's family.
        config: The model's configuration.
        checkpoint: The weights, relative to the card's folder.
        extra: Further fields; fairseq2 keeps and shows those that it does not know.
    """
    resolver = get_dependency_resolver()
    card: dict[str, object] = {
        "name": name,
        "model_family": family,
        "model_config": resolver.resolve(ValueConverter).unstructure(config),  # type: ignore[type-abstract]
        "checkpoint": checkpoint,
        **extra,
    }
    with atomic_file(path) as temporary:
        # fairseq2's own writer: PyYAML writes 1e-05 so that fairseq2 reads a string.
        resolver.resolve(YamlDumper).dump(card, temporary)  # type: ignore[type-abstract]


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


def _last_checkpoint_card(folder: Path) -> AssetCard | None:
    """Return the card that fairseq2 makes for the last step of a run, or None if there is no step."""
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not (checkpoints / "model.yaml").exists():
        return None
    return StandardAssetStore([load_metadata(checkpoints)]).maybe_retrieve_card("last_checkpoint")


def _innermost(error: BaseException) -> str:
    """Return the first line of the innermost cause, the one that says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).partition("\n")[0]

"""Models by what a user calls them: a card's name, a run's folder, or a folder of SPEAR's released layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, final

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


@final
@dataclass(frozen=True)
class RunStep:
    """A checkpoint of a run."""

    folder: Path
    """The run's output folder."""

    step_nr: int


def find_spear_card(reference: str, where: str) -> AssetCard:
    """Return the card of a SPEAR model; arguments and errors are those of :func:`find_card`."""
    return find_card(reference, where, SPEAR_FAMILY)


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


def default_model_name(folder: Path) -> str:
    """Return a name for the card of the model that a recipe writes to a folder."""
    return re.sub(r"\W+", "_", f"spear_{folder.resolve().name}")


def run_step_of(card: AssetCard) -> RunStep | None:
    """Return the checkpoint that a card of :func:`find_card` stands for, or None if it is of no run."""
    checkpoint = card.maybe_get_field("checkpoint")
    if card.base is None or checkpoint is None or not isinstance(checkpoint.value, str):
        return None
    # RUN/checkpoints/step_N/model
    step, checkpoints, folder = list(Path(checkpoint.value).parents)[:3]
    if checkpoints.name != "checkpoints" or not (checkpoints / "model.yaml").is_file():
        return None
    return RunStep(folder, int(step.name.removeprefix("step_")))


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


def load_encoder(card: AssetCard, name: str, *, device: torch.device) -> SpearModel | SpidrModel:
    """Load a model of SPEAR or SpidR that messages call ``name``.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its card.
    """
    load = load_spidr_model if family_of(card) == SPIDR_FAMILY else load_spear_model
    return load(card, name, device=device)


def create_untrained_encoder(card: AssetCard, name: str, *, seed: int, device: torch.device) -> SpearModel | SpidrModel:
    """Return the architecture of a model of SPEAR or SpidR with fresh weights.

    Raises:
        RecipeError: If the card is damaged.
    """
    is_spidr = family_of(card) == SPIDR_FAMILY
    hub: ModelHub[Any, Any] = get_spidr_model_hub() if is_spidr else get_spear_model_hub()
    config = load_config(hub, card, name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: SpearModel | SpidrModel = hub.create_new_model(config, device=device)
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

"""Models of runs, and their cards; they are found by :mod:`spear_plugin.models.lookup`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from fairseq2.assets import AssetCard
from fairseq2.models import ModelHub
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import ValueConverter
from fairseq2.utils.yaml import YamlDumper

from spear_plugin.data.files import atomic_file
from spear_plugin.models.lookup import ConfigT as ConfigT
from spear_plugin.models.lookup import family_of as family_of
from spear_plugin.models.lookup import find_card as find_card
from spear_plugin.models.lookup import load_config as load_config
from spear_plugin.models.lookup import load_encoder as load_encoder
from spear_plugin.models.lookup import load_metadata as load_metadata
from spear_plugin.models.lookup import load_model as load_model
from spear_plugin.models.lookup import weights_digest as weights_digest
from spear_plugin.models.spear import SPEAR_FAMILY, SpearConfig, SpearModel, get_spear_model_hub
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel, get_spidr_model_hub


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


def load_spear_config(card: AssetCard, name: str) -> SpearConfig:
    """Return the configuration of a model that messages call ``name``.

    Raises:
        RecipeError: If the card is damaged.
    """
    return load_config(get_spear_model_hub(), card, name)


def load_spear_model(card: AssetCard, name: str, *, device: torch.device) -> SpearModel:
    """Load a model that messages call ``name``.

    Raises:
        RecipeError: If its weights are damaged, missing, or do not fit its card.
    """
    return load_model(get_spear_model_hub(), card, name, device=device)


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

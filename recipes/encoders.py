"""The encoder below a downstream task: a pre-trained model, the same architecture with new weights, or log-mel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from fairseq2.assets import AssetCard
from fairseq2.models import ModelHub
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from torch.nn import Module
from typing_extensions import override

from recipes.models import ConfigT, family_of, find_card, load_config, load_model
from spear_plugin.models.downstream import EncoderConfig, SpearEncoder, SpidrEncoder
from spear_plugin.models.spear import SPEAR_FAMILY, SpearConfig, get_spear_model_hub
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrConfig, get_spidr_model_hub

_KEY: Final = "`encoder.checkpoint`"

_FAMILIES: Final = (SPEAR_FAMILY, SPIDR_FAMILY)


@dataclass(kw_only=True)
class EncoderSection(Validatable):
    """Which encoder a task gets, and when it is trained."""

    checkpoint: str | None = None
    """A card's name, the folder of a pre-training run (its last checkpoint), or that of a released SPEAR model."""

    new_weights: bool = False
    """If ``True``, only the architecture of the checkpoint is taken: training from scratch."""

    family: str | None = None
    """Without a checkpoint: ``spear``, ``spidr``, or ``log_mel``, which has no parameters. With one: which family it
    must be of, if that matters."""

    arch: str | None = None
    """Without a checkpoint, the size, such as ``tiny``; new weights."""

    frozen_steps: int | None = 0
    """Steps in which only the head is trained; ``None``: all."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.checkpoint is None and self.family not in (*_FAMILIES, "log_mel"):
            result.add_error(
                "`checkpoint` must be the name of a card or the folder of a run; or `family` must be one of "
                f"{', '.join(_FAMILIES)}, log_mel, but is '{self.family}'."
            )
        if self.checkpoint is not None and self.arch is not None:
            result.add_error("`arch` must not be set beside `checkpoint`, which has one.")
        if self.checkpoint is not None and self.family not in (None, *_FAMILIES):
            result.add_error(f"`family` of a checkpoint must be one of {', '.join(_FAMILIES)}, but is '{self.family}'.")
        if self.checkpoint is None and self.family in _FAMILIES and self.arch is None:
            result.add_error("`arch` must be set when `family` is and `checkpoint` is not, for example to tiny.")
        if self.frozen_steps is not None and self.frozen_steps < 0:
            result.add_error(f"`frozen_steps` must not be negative, but is {self.frozen_steps}.")
        return result


@final
@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from."""

    config: EncoderConfig

    card: AssetCard | None
    """The pre-trained model; None for new weights."""

    name: str
    """What messages and model cards call it."""


def find_encoder(section: EncoderSection) -> EncoderSource:
    """Return what a section of the configuration describes, without loading any weights.

    Raises:
        RecipeError: If there is no such model, it is of a family that gives no features, or its card is damaged.
    """
    if section.checkpoint is None:
        return EncoderSource(_create_config(section), None, f"{section.family} {section.arch or ''}".strip())
    families = (section.family,) if section.family is not None else _FAMILIES
    card = find_card(section.checkpoint, _KEY, *families)
    if family_of(card) == SPEAR_FAMILY:
        config = _spear(load_config(get_spear_model_hub(), card, section.checkpoint))
    else:
        config = _spidr(load_config(get_spidr_model_hub(), card, section.checkpoint))
    return EncoderSource(config, None if section.new_weights else card, section.checkpoint)


def load_encoder(source: EncoderSource, encoder: Module) -> None:
    """Put the weights of a pre-trained model, if there is one, into an encoder of its configuration.

    Raises:
        RecipeError: If weights are damaged, missing, or those of another model.
    """
    if source.card is None:
        return
    cpu = torch.device("cpu")
    if isinstance(encoder, SpearEncoder):
        spear = load_model(get_spear_model_hub(), source.card, source.name, device=cpu, config=source.config.spear)
        encoder.model.load_state_dict(spear.state_dict())
    elif isinstance(encoder, SpidrEncoder):
        spidr = load_model(get_spidr_model_hub(), source.card, source.name, device=cpu, config=source.config.spidr)
        encoder.model.load_state_dict(spidr.state_dict())


def _create_config(section: EncoderSection) -> EncoderConfig:
    if section.family == SPEAR_FAMILY:
        return _spear(_arch_config(get_spear_model_hub(), section.arch))
    if section.family == SPIDR_FAMILY:
        return _spidr(_arch_config(get_spidr_model_hub(), section.arch))
    return EncoderConfig(family="log_mel", spear=None)


def _spear(config: SpearConfig) -> EncoderConfig:
    # Heads are for pre-training.
    return EncoderConfig(spear=replace(config, target_streams=[]))


def _spidr(config: SpidrConfig) -> EncoderConfig:
    return EncoderConfig(family="spidr", spear=None, spidr=config)


def _arch_config(hub: ModelHub[Any, ConfigT], arch: str | None) -> ConfigT:
    if arch not in hub.get_archs():
        raise RecipeError(f"`encoder.arch` must be one of {', '.join(sorted(hub.get_archs()))}, but is '{arch}'.")
    return hub.get_arch_config(arch)

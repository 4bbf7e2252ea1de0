from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from safetensors.torch import save_file
from typing_extensions import override

from recipes.models import default_model_name, find_spear_card, load_spear_config, load_spear_model, write_spear_card
from recipes.spear.export.config import SpearExportConfig
from recipes.spear.export.readme import write_readme
from recipes.tasks import StoppableTask, refuse_several_processes
from spear_plugin.data.files import atomic_file
from spear_plugin.models.spear import (
    RELEASED_CONFIG_FILE,
    RELEASED_WEIGHTS_FILE,
    SpearConfig,
    SpearModel,
    convert_to_released_state_dict,
    convert_to_training_state_dict,
    create_released_config,
)

TRAINING_WEIGHTS_FILE: Final = "model.pt"


@final
class SpearExportRecipe(Recipe):
    """Writes a model in one of the authors' layouts."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.spear.export")
        return SpearExportTask(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return SpearExportConfig


@final
class SpearExportTask(StoppableTask):
    """Reads a model and writes it to OUT, weights first and what makes the folder a model last."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(SpearExportConfig)
        self._folder = context.output_dir

    @override
    def run(self) -> None:
        for file in (RELEASED_WEIGHTS_FILE, TRAINING_WEIGHTS_FILE):
            if (self._folder / file).exists():
                raise RecipeError(f"{self._folder / file} exists already: OUT must be a new folder.")
        source = self._config.model
        card = find_spear_card(source, "`model`")
        config = load_spear_config(card, source)
        released = create_released_config(config) if self._config.layout == "released" else None
        model = load_spear_model(card, source, device=torch.device("cpu"))

        name = self._config.name or default_model_name(self._folder)
        if released is not None:
            config = replace(config, target_streams=[])
            checkpoint = write_released_weights(self._folder, model)
        else:
            checkpoint = write_training_weights(self._folder, model, config)
        write_spear_card(self._folder / "card.yaml", name, config, checkpoint, {"license": "Apache-2.0"})
        write_readme(self._folder, name, card, config, self._config)
        if released is not None:
            with atomic_file(self._folder / RELEASED_CONFIG_FILE) as temporary:
                temporary.write_text(json.dumps(released, indent=2) + "\n", encoding="utf-8")
        log.info("{} in {}, {} layout.", name, self._folder, self._config.layout)


def write_released_weights(folder: Path, model: SpearModel) -> str:
    """Write the encoder as safetensors and return the file's name."""
    tensors = {key: value.contiguous() for key, value in convert_to_released_state_dict(model.state_dict()).items()}
    with atomic_file(folder / RELEASED_WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return RELEASED_WEIGHTS_FILE


def write_training_weights(folder: Path, model: SpearModel, config: SpearConfig) -> str:
    """Write encoder and heads as a checkpoint of the authors' training and return the file's name."""
    with atomic_file(folder / TRAINING_WEIGHTS_FILE) as temporary:
        torch.save({"model": convert_to_training_state_dict(model.state_dict(), config)}, temporary)
    return TRAINING_WEIGHTS_FILE

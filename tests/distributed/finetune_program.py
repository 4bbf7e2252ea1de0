"""Fine-tunes for tagging as ``python -m`` does, and saves the model of each process: ``FOLDER/rank_N.pt``.

torchrun -m tests.distributed.finetune_program FOLDER RUN --config ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from fairseq2.recipe.base import Recipe
from torch.nn import Module

import recipes.finetuning
from recipes.common import main
from recipes.tagging.finetune.recipe import TaggingFinetuneRecipe

if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    recipe: Recipe = TaggingFinetuneRecipe()
    models: list[Module] = []
    create_unit = recipes.finetuning.FinetuneTrainUnit

    def remember(criterion: Any, model: Any, *arguments: Any) -> Any:
        models.append(model)
        return create_unit(criterion, model, *arguments)

    recipes.finetuning.FinetuneTrainUnit = remember  # type: ignore[misc, assignment]
    try:
        main(recipe, None)
    finally:
        torch.save(models[0].state_dict(), folder / f"rank_{os.environ.get('RANK', '0')}.pt")

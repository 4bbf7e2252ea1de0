"""`recipes.spear.pretrain` whose first start has time before each step, so that a signal comes before its end."""

from __future__ import annotations

import os
import time

from recipes.common import main
from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from recipes.spear.pretrain.unit import SpearTrainUnit

SECONDS_PER_STEP = 0.5
"""Slurm looks at time limits twice a minute; a test that waits for that has 110 steps left."""

_set_step_nr = SpearTrainUnit.set_step_nr


def set_step_nr_slowly(unit: SpearTrainUnit, step_nr: int) -> None:
    time.sleep(SECONDS_PER_STEP)
    _set_step_nr(unit, step_nr)


if __name__ == "__main__":
    if "SLURM_RESTART_COUNT" not in os.environ:
        setattr(SpearTrainUnit, "set_step_nr", set_step_nr_slowly)  # noqa: B010  (mypy takes no assignment to a method)
    main(SpearPretrainRecipe(), None)

"""The running average of the weights during a run, saved in each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.trainer import Trainer
from torch.nn import Module
from torch.optim import Optimizer

from recipes.elastic import checkpoint_folder
from recipes.spear.pretrain.config import SpearPretrainConfig
from spear_plugin.models.spear import SpearModel
from spear_plugin.optim.averaging import RUNNING_AVERAGE_FILE, AveragingError, RunningAverage


def keep_running_average(context: RecipeContext, trainer: Trainer) -> None:
    """Have the first process average the weights, if the configuration asks for it. Training itself does not change.

    Raises:
        RecipeError: The average cannot be kept with this configuration, or not be continued from the last checkpoint.
    """
    config = context.get_config_as(SpearPretrainConfig)
    every_n_steps = config.running_average.every_n_steps
    if every_n_steps is None:
        return
    if config.regime.save_model_only not in (False, "all_but_last"):
        raise RecipeError("`running_average` needs checkpoints to go on from: unset `regime.save_model_only`.")
    if context.gangs.root.rank != 0:
        return
    folder = checkpoint_folder(context)
    last_step_nr = context.get_checkpoint_manager().maybe_get_last_step_number(exclude_model_only=True)
    average = _continue_average(folder, last_step_nr or 0, every_n_steps)
    _Averager(average, folder, trainer, context.get_model_as(SpearModel)).attach(context.get_optimizer())


def _continue_average(folder: Path, step_nr: int, every_n_steps: int) -> RunningAverage:
    if step_nr < every_n_steps:
        return RunningAverage(every_n_steps)
    path = folder / f"step_{step_nr}" / RUNNING_AVERAGE_FILE
    try:
        average = RunningAverage.load(path, step_nr)
    except FileNotFoundError:
        raise RecipeError(
            f"{folder}: the run has no running average at step {step_nr}, and it cannot begin later than the run. "
            "Unset `running_average.every_n_steps`, or start a run in another folder."
        ) from None
    except AveragingError as ex:
        raise RecipeError(f"{ex} Delete this checkpoint to go on from the one before.") from None
    if average.every_n_steps != every_n_steps:
        raise RecipeError(
            f"`running_average.every_n_steps` must stay {average.every_n_steps}, as in {path}, but is {every_n_steps}."
        )
    log.info("Running average of {} snapshots restored.", average.num_snapshots)
    return average


@final
class _Averager:
    """Follows the optimizer: each of its steps may be a snapshot, and its state is asked for by each checkpoint alone.

    Both happen in the training loop, so the average in a checkpoint is that of its step even though fairseq2 goes on
    training while it writes the other files. The folder of a checkpoint gets its name when all files are written:
    checkpoint and average come, and are deleted, together.
    """

    def __init__(self, average: RunningAverage, folder: Path, trainer: Trainer, model: Module) -> None:
        self._average = average
        self._folder = folder
        self._trainer = trainer
        self._model = model

    def attach(self, optimizer: Optimizer) -> None:
        optimizer.register_step_post_hook(lambda *_: self._update())
        optimizer.register_state_dict_pre_hook(lambda *_: self._save())

    def _update(self) -> None:
        self._average.update(self._model.state_dict(), self._trainer.step_nr)

    def _save(self) -> None:
        step_nr = self._trainer.step_nr
        unfinished = self._folder / f"step_{step_nr}.tmp"
        if not unfinished.is_dir():
            raise RecipeError(f"`running_average` needs a checkpoint folder of its own, but {unfinished} is none.")
        path = unfinished / RUNNING_AVERAGE_FILE
        path.parent.mkdir(exist_ok=True)
        self._average.save(path, step_nr)

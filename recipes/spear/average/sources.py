"""The checkpoints of a run and the models of cards that an average is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

import torch
from fairseq2.assets import AssetCard, StandardAssetStore
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from recipes.models import find_spear_card, load_metadata, load_spear_config, load_spear_model
from recipes.spear.average.config import SpearAverageConfig
from spear_plugin.models.spear import SpearConfig
from spear_plugin.optim.averaging import RUNNING_AVERAGE_FILE, AveragingError, RunningAverage


@final
@dataclass(frozen=True)
class Source:
    """A model to average."""

    name: str
    """How messages call it."""

    card: AssetCard

    step_nr: int = 0

    def load_config(self) -> SpearConfig:
        """Read the model's configuration.

        Raises:
            RecipeError: The card is damaged.
        """
        return load_spear_config(self.card, self.name)

    def load_state(self) -> dict[str, Tensor]:
        """Read the tensors of the model.

        Raises:
            RecipeError: They are damaged, missing, or do not fit the card.
        """
        return load_spear_model(self.card, self.name, device=torch.device("cpu")).state_dict()


@final
class Run:
    """The checkpoints in the folder of a run.

    Raises:
        RecipeError: There are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
        names = [path.parent.name for path in self.folder.glob("step_*/model")]
        self.step_nrs = sorted(int(name[5:]) for name in names if name[5:].isdecimal())
        if not (self.folder / "model.yaml").is_file() or not self.step_nrs:
            raise RecipeError(f"{folder} holds no finished checkpoint of a run. Train first, or name another folder.")
        self._store = StandardAssetStore([load_metadata(self.folder)])

    def select(self, last_n: int | None, step_nrs: Sequence[int]) -> list[Source]:
        """Return the checkpoints of these steps, or the last ones, or all.

        Raises:
            RecipeError: There are fewer.
        """
        if missing := [step for step in step_nrs if step not in self.step_nrs]:
            raise RecipeError(f"{self.folder} has no checkpoint of step {missing[0]}, but of {self._describe()}.")
        if last_n is not None and last_n > len(self.step_nrs):
            raise RecipeError(f"{self.folder} must have {last_n} checkpoints, but has {self._describe()}.")
        return [self.get(step) for step in step_nrs or self.step_nrs[-(last_n or 0) :]]

    def get(self, step_nr: int) -> Source:
        card = self._store.retrieve_card(f"checkpoint_step_{step_nr}")
        return Source(f"{self.folder / f'step_{step_nr}'}", card, step_nr)

    def select_span(self, last_n: int | None, step_nrs: Sequence[int]) -> tuple[int, int]:
        """Return the steps M and N of a mean over the snapshots after M and up to N.

        Raises:
            RecipeError: There are not so many checkpoints.
        """
        if step_nrs:
            return (step_nrs[0] if len(step_nrs) > 1 else 0), self.select(None, step_nrs[-1:])[0].step_nr
        last = self.step_nrs[-1]
        if last_n is None:
            return 0, last
        if last_n >= len(self.step_nrs):
            raise RecipeError(
                f"{self.folder} must have {last_n + 1} checkpoints for `last_n={last_n}` with `mode: running`, but has "
                f"{self._describe()}. Name the steps, such as `steps=[0, {last}]`."
            )
        return self.step_nrs[-1 - last_n], last

    def load_running_average(self, step_nr: int) -> RunningAverage:
        """Read the running average that belongs to a checkpoint.

        Raises:
            RecipeError: There is none, or it is damaged.
        """
        try:
            return RunningAverage.load(self.folder / f"step_{step_nr}" / RUNNING_AVERAGE_FILE, step_nr)
        except FileNotFoundError:
            raise RecipeError(
                f"{self.folder} has no running average at step {step_nr}: either no such checkpoint is left, or the "
                "run was trained without `running_average.every_n_steps`."
            ) from None
        except AveragingError as ex:
            raise RecipeError(str(ex)) from None

    def _describe(self) -> str:
        return f"{len(self.step_nrs)} (steps {', '.join(map(str, self.step_nrs))})"


def find_sources(config: SpearAverageConfig) -> list[Source]:
    """Return the models to average, all of the same configuration.

    Raises:
        RecipeError: A model is missing, of another family, or has another configuration than the first.
    """
    if config.run is not None:
        return Run(config.run).select(config.last_n, config.steps)
    sources = [Source(name, find_spear_card(name, "`models`")) for name in config.models]
    first = sources[0].load_config()
    for source in sources[1:]:
        other = source.load_config()
        differing = [f.name for f in fields(SpearConfig) if getattr(first, f.name) != getattr(other, f.name)]
        if differing:
            raise RecipeError(
                f"{sources[0].name} and {source.name} must have the same configuration, but differ in "
                f"`{'`, `'.join(differing)}`."
            )
    return sources

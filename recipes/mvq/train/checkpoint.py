from __future__ import annotations

import json
import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, final

import torch
from fairseq2.recipe.error import RecipeError

from recipes.mvq.train.storage import check_same_provenance
from spear_plugin.data.files import atomic_file


class ResumableTrainer(Protocol):
    """Trains a quantizer of any kind."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on bit for bit, tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on from such a state."""


@final
class QuantizerCheckpoint:
    """The file from which the training of a quantizer goes on."""

    def __init__(self, path: Path, provenance: dict[str, object]) -> None:
        """:param provenance: All that the training depends on, values of JSON; kept in the file."""
        self._path = path
        self._provenance = provenance

    def load(self, trainer: ResumableTrainer) -> None:
        """Bring the trainer to the saved state, if there is one.

        :raises RecipeError: If the file is damaged or of a training with other settings.
        """
        if not self._path.exists():
            return

        try:
            checkpoint = torch.load(self._path, map_location="cpu", weights_only=True)
            provenance = json.loads(checkpoint["provenance"])
        except (EOFError, KeyError, RuntimeError, UnpicklingError, ValueError) as ex:
            reason = str(ex).partition("\n")[0]
            raise RecipeError(
                f"{self._path}: must be a checkpoint, but is damaged ({reason}). Delete the file."
            ) from None

        check_same_provenance(self._path, provenance, self._provenance)
        trainer.load_state_dict(checkpoint["trainer"])

    def save(self, trainer: ResumableTrainer) -> None:
        self._path.parent.mkdir(exist_ok=True)
        with atomic_file(self._path) as temporary:
            torch.save({"provenance": json.dumps(self._provenance), "trainer": trainer.state_dict()}, temporary)


@final
class StepWatch:
    """Measures the rate of steps and what remains of them."""

    def __init__(self, step_nr: int, num_steps: int) -> None:
        self._step_nr = step_nr
        self._num_steps = num_steps
        self._time = time.perf_counter()

    def lap(self, step_nr: int) -> dict[str, float]:
        """Return the rate since the last call and the seconds that the remaining steps will take at it."""
        now = time.perf_counter()
        rate = (step_nr - self._step_nr) / max(now - self._time, 1e-9)
        self._step_nr, self._time = step_nr, now

        return {"steps_per_second": rate, "remaining_seconds": (self._num_steps - step_nr) / max(rate, 1e-9)}

"""Means of a model's weights over training, in float64.

Source: the authors' pre-training code, which keeps a running mean of the weights and releases differences of two of its
states ("iter-N-avg-k").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

RUNNING_AVERAGE_FILE: Final = "hook/running_average.safetensors"
"""Where a run keeps its running average within the folder of a checkpoint. fairseq2 deletes other state of
old checkpoints (``save_model_only: all_but_last``), but leaves ``hook``."""

_FORMAT: Final = "spear_running_average"


class AveragingError(Exception):
    """States that have no mean, or a running average that cannot be read; the message is one line."""


@final
class WeightMean:
    """The plain mean of states that are seen one after the other; only the sum is kept."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._num_states = 0

    def add(self, state: Mapping[str, Tensor], name: str) -> None:
        """Take in a state of a model.

        Args:
            state: Its tensors.
            name: How messages call the state.

        Raises:
            AveragingError: A tensor is missing, has another shape than in the states before, or is not finite.
        """
        floating = _select_floating(state)
        for key, value in floating.items():
            if not value.isfinite().all():
                raise AveragingError(f"{name} holds infinite or undefined values in '{key}'.")
        if self._num_states == 0:
            self._sums = {key: value.to("cpu", torch.float64, copy=True) for key, value in floating.items()}
        else:
            _check_same_tensors(floating, self._sums, name)
            for key, value in floating.items():
                self._sums[key] += value.cpu()
        self._last = dict(state)
        self._num_states += 1

    def result(self) -> dict[str, Tensor]:
        """Return the mean in the data types of the last state, and from that all that is not floating."""
        return merge_average({key: value / self._num_states for key, value in self._sums.items()}, self._last)


@final
@dataclass
class RunningAverage:
    """The plain mean of the snapshots at steps p, 2 p, ... of a training, p being ``every_n_steps``.

    Snapshots enter as in the authors' code: avg := avg (1 - p / n) + current p / n at step n.
    """

    every_n_steps: int

    num_snapshots: int = 0

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The mean of each floating tensor: float64, on the CPU."""

    def update(self, state: Mapping[str, Tensor], step_nr: int) -> None:
        """Take in the state after the step with this number, if it is one for a snapshot.

        Raises:
            AveragingError: Snapshots before this one were missed.
        """
        if step_nr % self.every_n_steps != 0:
            return
        if step_nr != (self.num_snapshots + 1) * self.every_n_steps:
            raise AveragingError(
                f"The running average at step {step_nr} must hold all snapshots before, but has {self.num_snapshots}."
            )
        self.num_snapshots += 1
        for key, value in _select_floating(state).items():
            snapshot = value.detach().to("cpu", torch.float64, copy=True)
            if self.num_snapshots == 1:
                self.tensors[key] = snapshot
            else:
                self.tensors[key].lerp_(snapshot, 1.0 / self.num_snapshots)

    def since(self, earlier: RunningAverage) -> dict[str, Tensor]:
        """Return the mean of the snapshots after those of an ``earlier`` average of the same run, float64.

        Raises:
            AveragingError: There is no such snapshot, or the averages are of different runs.
        """
        if earlier.every_n_steps != self.every_n_steps:
            raise AveragingError(
                f"Running averages of snapshots every {earlier.every_n_steps} and every {self.every_n_steps} steps "
                "must not be combined."
            )
        later, before = self.num_snapshots, earlier.num_snapshots
        if later <= before:
            raise AveragingError(f"There is no snapshot between the steps: they are {self.every_n_steps} steps apart.")
        if before == 0:
            return dict(self.tensors)
        _check_same_tensors(earlier.tensors, self.tensors, "The earlier running average")
        return {
            key: (value * later - earlier.tensors[key] * before) / (later - before)
            for key, value in self.tensors.items()
        }

    def save(self, path: Path, step_nr: int) -> None:
        """Write the average as it is after the step with this number."""
        metadata = {
            "format": _FORMAT,
            "step_nr": str(step_nr),
            "every_n_steps": str(self.every_n_steps),
            "num_snapshots": str(self.num_snapshots),
        }
        save_file(self.tensors, path, metadata)

    @staticmethod
    def load(path: Path, step_nr: int) -> RunningAverage:
        """Read the average of the step with this number.

        Raises:
            AveragingError: The file is damaged, something else, or of another step.
            FileNotFoundError: There is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            if metadata["format"] != _FORMAT:
                raise ValueError(f"its format is '{metadata['format']}'")
            every_n_steps, num_snapshots = int(metadata["every_n_steps"]), int(metadata["num_snapshots"])
            if int(metadata["step_nr"]) != step_nr:
                raise ValueError(f"it is of step {metadata['step_nr']}")
            if num_snapshots != step_nr // every_n_steps:
                raise ValueError(f"it has {num_snapshots} snapshots")
        except (SafetensorError, OSError, KeyError, ValueError, ZeroDivisionError) as ex:
            reason = " ".join(str(ex).split())
            raise AveragingError(
                f"{path}: must be the running average of step {step_nr}, but is damaged ({reason})."
            ) from None
        return RunningAverage(every_n_steps, num_snapshots, tensors)


def merge_average(average: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with its floating tensors replaced by those of ``average``, in the data types of ``state``.

    Raises:
        AveragingError: They do not have the same floating tensors.
    """
    floating = _select_floating(state)
    _check_same_tensors(floating, average, "The model")
    return {key: average[key].to(value.dtype) if key in floating else value.cpu() for key, value in state.items()}


def _select_floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if value.is_floating_point()}


def _check_same_tensors(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], name: str) -> None:
    differing: Iterable[str] = tensors.keys() ^ others.keys()
    if not differing:
        differing = [key for key in tensors if tensors[key].shape != others[key].shape]
    for key in sorted(differing):
        raise AveragingError(f"{name} must have the same tensors as the others, but differs in '{key}'.")

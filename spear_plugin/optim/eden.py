"""Eden: a learning rate that falls with the number of steps and with the hours of audio seen.

The hours make the rate independent of the batch size: a run with batches of twice the length reaches the same rate with
the same audio. Source: SPEAR's training code; the rate of step b (the first one is 1) after h hours is

    base * ((b^2 + B^2) / B^2)^(-1/4) * ((h^2 + H^2) / H^2)^(-1/4) * warm-up
"""

from __future__ import annotations

from typing import Any, final

from fairseq2.optim.lr_schedulers import AbstractLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override


@final
class EdenLR(AbstractLRScheduler):
    """Sets the rate of optimizer step b before that step, where ``step()`` is called after each optimizer step."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        decay_steps: float = 7500.0,
        decay_hours: float = 25_000.0,
        hours_per_step: float | None = None,
        num_warmup_steps: int = 500,
        warmup_start: float = 0.5,
        last_epoch: int = -1,
    ) -> None:
        """Initialize the schedule; see :class:`EdenLRConfig`.

        Args:
            optimizer: Its rates are the base rates.
            decay_steps: Steps after which the rate has fallen by 16 %, above 0.
            decay_hours: The same for hours of audio, above 0.
            hours_per_step: Hours of audio that all processes together read in a step; None leaves hours out.
            num_warmup_steps: Steps of linear warm-up, at least 0.
            warmup_start: Share of the rate at which warm-up starts, in [0, 1].
            last_epoch: Steps done minus one, as in torch's schedulers.
        """
        self.decay_steps = decay_steps
        self.decay_hours = decay_hours
        self.hours_per_step = hours_per_step
        self.num_warmup_steps = num_warmup_steps
        self.warmup_start = warmup_start
        self.hours_before = 0.0
        """Added to the hours, where earlier steps had another number of hours than those to come."""

        super().__init__(optimizer, last_epoch)

    @override
    def _compute_lrs(self) -> list[float | Tensor]:
        # The base class counts the steps done, and the rate is that of the step to come.
        factor = self._factor(self.last_epoch + 1)

        return [base_lr * factor for base_lr in self.base_lrs]

    def _factor(self, step_nr: int) -> float:
        factor = _decay(step_nr / self.decay_steps)

        if self.hours_per_step is not None:
            factor *= _decay((self.hours_before + step_nr * self.hours_per_step) / self.decay_hours)

        if step_nr < self.num_warmup_steps:
            factor *= self.warmup_start + (1.0 - self.warmup_start) * step_nr / self.num_warmup_steps

        return factor

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, whose hours stay what they are if the steps to come have others."""
        hours_per_step = self.hours_per_step

        super().load_state_dict(state_dict)

        if self.hours_per_step is not None and hours_per_step is not None:
            self.hours_before += self.last_epoch * (self.hours_per_step - hours_per_step)

        self.hours_per_step = hours_per_step


def _decay(progress: float) -> float:
    """Return 1 for no progress, about 0.84 for 1, and the inverse square root of what is much larger."""
    return float((progress**2 + 1.0) ** -0.25)

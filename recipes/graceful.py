"""Stopping with a checkpoint when asked to, at the same step on all processes."""

from __future__ import annotations

from typing import final

import torch
import torch.distributed as dist
from fairseq2.gang import Gang
from fairseq2.task import Task
from fairseq2.trainer import Trainer
from fairseq2.validator import NOOP_VALIDATOR
from torch.optim import Optimizer
from typing_extensions import override


@final
class StopAgreement:
    """Lets processes agree, step by step, that one of them was asked to stop.

    The votes of a step are counted while the next one runs, on the hosts: no process waits for another, or for its
    device, longer than training makes it wait anyhow.

    Args:
        gang: All processes of the run.
    """

    def __init__(self, gang: Gang) -> None:
        self._group = dist.new_group(backend="gloo") if gang.size > 1 else None
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def vote(self, stop: bool) -> bool:
        """Give this step's vote and return whether any process wanted to stop by the step before.

        All processes must call it in the same steps; all get the same answer.
        """
        if self._group is None:
            return stop
        if self._pending is not None:
            self._pending.wait()
            if self._votes.item() > 0:
                return True
        self._votes = torch.tensor([int(stop)], dtype=torch.int32)
        self._pending = dist.all_reduce(self._votes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False


@final
class GracefulTraining(Task):
    """A trainer that stops with a checkpoint on request, also when `regime.num_steps` is set.

    fairseq2 0.8.1 looks at the request only when the number of steps is open, and each of its processes looks for
    itself. Here the trainer hears of the request when all processes agree, after a step that counts (not one that
    overflowed in float16), and does not validate before it goes: the time before the end may be short.

    Args:
        trainer: The trainer.
        optimizer: Its optimizer.
        gang: All processes of the run.
        num_steps: The last step of the run, if it is known.
    """

    def __init__(self, trainer: Trainer, optimizer: Optimizer, gang: Gang, num_steps: int | None) -> None:
        self._trainer = trainer
        self._num_steps = num_steps
        self._stop_requested = False
        self._agreement = StopAgreement(gang)
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    def _after_step(self) -> None:
        if self._num_steps is not None and self._trainer.step_nr >= self._num_steps:
            return  # ends here anyhow
        if self._agreement.vote(self._stop_requested):
            # As if the number of steps were open. The trainer has no public way to stop.
            self._trainer._max_num_steps = None
            self._trainer._validator = NOOP_VALIDATOR
            self._trainer.request_stop()

    @property
    def trainer(self) -> Trainer:
        return self._trainer

    @override
    def run(self) -> None:
        self._trainer.run()

    @override
    def request_stop(self) -> None:
        self._stop_requested = True

    @property
    @override
    def step_nr(self) -> int:
        return self._trainer.step_nr

    @override
    def close(self) -> None:
        self._trainer.close()

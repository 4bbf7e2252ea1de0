"""What schedules and whiteners know about the course of training, as two tensors that checkpoints save."""

from __future__ import annotations

from typing import Final

import torch
from fairseq2.gang import Gang
from torch import Tensor
from torch.nn import Module

from spear_plugin.nn.regularizers import whiteners
from spear_plugin.nn.schedules import set_batch_count

UNKNOWN_BATCH_COUNT: Final = -1.0


class TrainingState(Module):
    """Keeps the batch count and the whiteners' memory of a model, which holds it as ``training_state``.

    The batch count is needed on the host. It is read from its tensor only after somebody else has written that, as
    loading a checkpoint does.
    """

    batch_count: Tensor
    """(1,) float32, -1 if nobody has said how far training is: schedules then have their default values."""

    is_white: Tensor
    """(W,) uint8, the ``is_white`` of each whitener. On several processes, see :meth:`share`."""

    def __init__(self, num_whiteners: int) -> None:
        super().__init__()

        self.register_buffer("batch_count", torch.empty(1, dtype=torch.float32))
        self.register_buffer("is_white", torch.empty(num_whiteners, dtype=torch.uint8))

        self._known_count: tuple[Tensor, int] | None = None
        self._bound_states: Tensor | None = None

        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.batch_count.fill_(UNKNOWN_BATCH_COUNT)
        self.is_white.zero_()

    def set_batch_count(self, model: Module, batch_count: float | None) -> None:
        """Tell the schedules of ``model``, without waiting for the device.

        :raises ValueError: If ``batch_count`` is negative.
        """
        if batch_count is None:
            batch_count = UNKNOWN_BATCH_COUNT
        elif batch_count < 0.0:
            raise ValueError(f"`batch_count` must not be negative, but is {batch_count} instead.")

        # Rounded as the tensor rounds it, so that a resumed run has the same number.
        batch_count = torch.tensor(batch_count, dtype=self.batch_count.dtype, device="cpu").item()

        self.batch_count.fill_(batch_count)

        self._publish(model, batch_count)

    def prepare(self, model: Module) -> None:
        """Make ``model`` ready for a forward pass in training. This costs nothing unless tensors were replaced."""
        if self._known_count is None or not self._is_known(*self._known_count):
            self._publish(model, self.batch_count.item())

        if self._bound_states is not self.is_white:
            for whitener, state in zip(whiteners(model), self.is_white.unbind(), strict=True):
                whitener.is_white = state

            self._bound_states = self.is_white

    def share(self, gang: Gang) -> None:
        """Give all processes the whiteners' memory of the first, without waiting for it on the host.

        Checkpoints hold that of the first process: a resumed run equals an uninterrupted one only if the others have
        the same. To be called by all processes before each step; it sends one byte for each whitener.
        """
        if gang.size > 1 and self.is_white.numel() > 0:
            gang.broadcast(self.is_white, source_rank=0)

    def _publish(self, model: Module, batch_count: float) -> None:
        set_batch_count(model, None if batch_count < 0.0 else batch_count)

        self._known_count = (self.batch_count, self.batch_count._version)

    def _is_known(self, tensor: Tensor, version: int) -> bool:
        return tensor is self.batch_count and version == self.batch_count._version

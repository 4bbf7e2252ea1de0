"""Training of a quantizer in two phases (MVQ, arXiv 2211.00508; settings of SPEAR, arXiv 2510.25955).

The first phase learns twice as many codebooks with the square root of the entries, the second starts from all pairs of
their entries.

Letters: F frames, B frames of a batch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairseq2.device import CPU, Device
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Generator, Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR
from typing_extensions import override

from spear_plugin.quantizers.config import MvqQuantizerConfig
from spear_plugin.quantizers.factory import create_mvq_quantizer, create_product_quantizer
from spear_plugin.quantizers.model import MultiCodebookQuantizer, QuantizerLosses
from spear_plugin.quantizers.statistics import compute_statistics


@dataclass(kw_only=True)
class QuantizerTrainingConfig(Validatable):
    """Holds the settings of the training; the defaults are SPEAR's."""

    phase_one_steps: int = 35_000

    phase_two_steps: int = 35_000

    batch_frames: int = 1024
    """Number of frames of a step."""

    lr: float = 0.005
    """Initial learning rate, halved after each quarter of a phase; the second phase starts at half of it."""

    entropy_weight: float = 0.01
    """Weight of the loss term that keeps all entries in use."""

    seed: int = 42
    """Of the initial weights, the order of the frames and the numbers of refinements."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for field in ("phase_one_steps", "phase_two_steps", "batch_frames", "lr"):
            value = getattr(self, field)
            if value <= 0:
                result.add_error(f"`{field}` must be positive, but is {value} instead.")
        return result


@dataclass(frozen=True)
class QuantizerProgress:
    """What a callback is told after a step."""

    num_steps_done: int

    num_steps: int

    phase: int
    """1 or 2."""

    lr: float

    losses: QuantizerLosses
    """Without gradients; to read their values waits for the device."""


class QuantizerTrainer:
    """Trains a quantizer on frames held in memory.

    The result depends on the frames and the two configurations alone: not on interruptions, nor on random numbers that
    others draw.
    """

    def __init__(
        self,
        frames: Tensor,
        quantizer_config: MvqQuantizerConfig,
        config: QuantizerTrainingConfig,
        *,
        device: Device = CPU,
    ) -> None:
        """Start the first phase.

        Args:
            frames: Of the teacher, float16 or float32 (F, D), on the CPU or on ``device``.
            quantizer_config: Of the quantizer that the second phase ends with.
            config: Of the training.
            device: Where to train.

        Raises:
            ValueError: The frames do not have the configured width, or the codebooks cannot be made of pairs.
        """
        dim, codebook_size = quantizer_config.dim, math.isqrt(quantizer_config.codebook_size)
        if frames.dim() != 2 or frames.size(1) != dim or len(frames) == 0:
            raise ValueError(f"`frames` must be (F, {dim}) with F > 0, but is {tuple(frames.shape)} instead.")
        if codebook_size**2 != quantizer_config.codebook_size:
            raise ValueError(
                f"`codebook_size` must be 4, 16, 64 or 256, but is {quantizer_config.codebook_size} instead."
            )
        self._frames = frames
        self._config = config
        self._device = device
        self._generator = Generator().manual_seed(config.seed)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self._num_steps_done = 0
        num_codebooks = 2 * quantizer_config.num_codebooks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            quantizer = create_mvq_quantizer(
                replace(quantizer_config, codebook_size=codebook_size, num_codebooks=num_codebooks)
            )
        if quantizer_config.normalize:
            quantizer.set_statistics(*compute_statistics(frames))
        self._begin_phase(quantizer.to(device))

    @property
    def quantizer(self) -> MultiCodebookQuantizer:
        """The quantizer in its present state; it has the configured sizes from the second phase on."""
        return self._quantizer

    @property
    def num_steps(self) -> int:
        """Number of steps of both phases; as in the reference, the first has one more than its configuration says."""
        return self._config.phase_one_steps + 1 + self._config.phase_two_steps

    @property
    def num_steps_done(self) -> int:
        return self._num_steps_done

    @property
    def phase(self) -> int:
        """Phase of the next step, 1 or 2."""
        return 1 if self._num_steps_done <= self._config.phase_one_steps else 2

    def run(self, callback: Callable[[QuantizerProgress], None] | None = None, *, until: int | None = None) -> None:
        """Train to the end or until ``until`` steps are done, and call ``callback`` after each step."""
        end = self.num_steps if until is None else min(until, self.num_steps)
        while self._num_steps_done < end:
            phase, lr = self.phase, self._scheduler.get_last_lr()[0]
            losses = self.step()
            if callback is not None:
                callback(QuantizerProgress(self._num_steps_done, self.num_steps, phase, lr, losses))

    def step(self) -> QuantizerLosses:
        """Train on the next batch and return its losses without gradients."""
        num_refinements = 2 if torch.rand((), generator=self._generator) < 0.5 else 1
        losses = self._quantizer.compute_loss(
            self._next_batch(), num_refinements=num_refinements, entropy_weight=self._config.entropy_weight
        )
        self._optimizer.zero_grad()
        torch.autograd.backward(losses.total)
        self._optimizer.step()
        self._scheduler.step()
        self._num_steps_done += 1
        if self._num_steps_done == self._config.phase_one_steps + 1:
            self._begin_phase(create_product_quantizer(self._quantizer))
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, which ``torch.load(..., weights_only=True)`` reads."""
        return {
            "num_steps_done": self._num_steps_done,
            "quantizer": self._quantizer.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a trainer of the same frames and configurations stood."""
        phase = self.phase
        self._num_steps_done = state_dict["num_steps_done"]
        if self.phase > phase:
            self._begin_phase(create_product_quantizer(self._quantizer))
        self._quantizer.load_state_dict(state_dict["quantizer"])
        self._optimizer.load_state_dict(state_dict["optimizer"])
        self._scheduler.load_state_dict(state_dict["scheduler"])
        self._generator.set_state(state_dict["generator"])

    def _begin_phase(self, quantizer: MultiCodebookQuantizer) -> None:
        config = self._config
        lr, num_steps = config.lr, config.phase_one_steps
        if self.phase == 2:
            lr, num_steps = config.lr / 2, config.phase_two_steps
        self._quantizer = quantizer
        self._optimizer = Adam(quantizer.parameters(), lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=1e-6, fused=True)
        self._scheduler = StepLR(self._optimizer, max(num_steps // 4, 1), gamma=0.5)

    def _next_batch(self) -> Tensor:
        """Return the next frames (B, D) of an endless sequence of permutations of all frames."""
        batch_frames = self._config.batch_frames
        epoch, start = divmod(self._num_steps_done * batch_frames, len(self._frames))
        rows = self._permutation(epoch)[start : start + batch_frames]
        while len(rows) < batch_frames:
            epoch += 1
            rows = torch.cat([rows, self._permutation(epoch)[: batch_frames - len(rows)]])
        return self._frames[rows.to(self._frames.device)].to(self._device, torch.float32)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = Generator().manual_seed(self._config.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._frames), generator=generator)
        return self._order

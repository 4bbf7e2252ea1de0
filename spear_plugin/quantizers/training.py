"""Training of a quantizer in two phases (MVQ, arXiv 2211.00508, section 3; settings of SPEAR).

Phase one trains twice as many codebooks with the square root of the entries, which is easy to learn; the second phase
starts from all pairs of their entries.

Letters: F frames, B frames of a batch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, cast

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

_CHUNK_SIZE: Final = 8192


@dataclass(kw_only=True)
class QuantizerTrainingConfig(Validatable):
    """Holds the settings of the training; the defaults are SPEAR's."""

    phase_one_steps: int = 35_000

    phase_two_steps: int = 35_000

    batch_frames: int = 1024
    """Number of frames of a step."""

    lr: float = 0.005
    """Initial learning rate; halved after each quarter of a phase. The second phase starts at half of it."""

    entropy_weight: float = 0.01
    """Weight of the loss that keeps the classifiers' mean prediction uniform."""

    seed: int = 42
    """Of the initial weights, the order of the frames and the number of refinements."""

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
    """What a progress callback gets after each step."""

    step: int
    """Number of steps done."""

    num_steps: int

    phase: int
    """1 or 2, of this step."""

    lr: float
    """Learning rate of this step."""

    losses: QuantizerLosses
    """Detached losses of this step; reading their values waits for the device."""


class QuantizerTrainer:
    """Trains a quantizer on frames that fit into memory.

    The result depends on the frames and the configurations alone, also if training was interrupted.
    """

    def __init__(
        self, frames: Tensor, model_config: MvqQuantizerConfig, config: QuantizerTrainingConfig, *, device: Device = CPU
    ) -> None:
        """:param frames: The teacher's frames (F, D), float16 or float32; they may stay on the CPU.
        :raises ValueError: The frames do not have the configured width, or the number of entries of a codebook is not
            the square of a power of two.
        """
        if frames.dim() != 2 or frames.size(1) != model_config.dim or len(frames) == 0:
            raise ValueError(f"`frames` must be (F, {model_config.dim}), but has shape {tuple(frames.shape)} instead.")

        codebook_size = math.isqrt(model_config.codebook_size)

        if codebook_size**2 != model_config.codebook_size:
            raise ValueError(f"`codebook_size` must be 4, 16, 64 or 256, but is {model_config.codebook_size} instead.")

        self._frames = frames
        self._config = config
        self._codebook_size = model_config.codebook_size
        self._device = device

        # Of our own: what else draws random numbers between the steps must not change the result.
        self._generator = Generator().manual_seed(config.seed)

        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

        self._step = 0

        phase_one = replace(model_config, codebook_size=codebook_size, num_codebooks=2 * model_config.num_codebooks)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)

            quantizer = create_mvq_quantizer(phase_one)

        if model_config.normalize:
            quantizer.set_statistics(*_compute_statistics(frames))

        self._begin_phase(quantizer.to(device))

    @property
    def quantizer(self) -> MultiCodebookQuantizer:
        """The quantizer in its present state; of the configured shape in the second phase."""
        return self._quantizer

    @property
    def num_steps(self) -> int:
        """Number of steps of both phases. The reference's first phase is one step longer than configured."""
        return self._config.phase_one_steps + 1 + self._config.phase_two_steps

    @property
    def step_nr(self) -> int:
        """Number of steps done."""
        return self._step

    @property
    def phase(self) -> int:
        """Phase of the next step, 1 or 2."""
        return 1 if self._step <= self._config.phase_one_steps else 2

    @property
    def done(self) -> bool:
        return self._step >= self.num_steps

    def run(self, callback: Callable[[QuantizerProgress], None] | None = None, *, until: int | None = None) -> None:
        """Train to the end, or until ``until`` steps are done; ``callback`` is called after each step."""
        end = self.num_steps if until is None else min(until, self.num_steps)

        while self._step < end:
            phase, lr = self.phase, self._scheduler.get_last_lr()[0]

            losses = self.step()

            if callback is not None:
                callback(QuantizerProgress(self._step, self.num_steps, phase, lr, losses))

    def step(self) -> QuantizerLosses:
        """Train on the next batch and return its losses, detached."""
        if self.done:
            raise RuntimeError(f"The training has ended after {self.num_steps} steps.")

        num_refinements = 2 if torch.rand((), generator=self._generator) < 0.5 else 1

        losses = self._quantizer.compute_loss(
            self._next_batch(), num_refinements=num_refinements, entropy_weight=self._config.entropy_weight
        )

        losses.total.backward()

        self._optimizer.step()
        self._optimizer.zero_grad()

        self._scheduler.step()

        self._step += 1

        if self._step == self._config.phase_one_steps + 1:
            self._begin_phase(create_product_quantizer(self._quantizer))

        return losses.detach()

    def state_dict(self) -> dict[str, object]:
        """Return the state: tensors and plain values, for ``torch.save`` and ``torch.load(weights_only=True)``."""
        return {
            "step": self._step,
            "quantizer": self._quantizer.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Continue where another trainer of the same frames and configurations stood."""
        self._step = cast("int", state_dict["step"])

        if self.phase == 2 and self._quantizer.codebook_size != self._codebook_size:
            self._begin_phase(create_product_quantizer(self._quantizer))

        self._quantizer.load_state_dict(cast("dict[str, Tensor]", state_dict["quantizer"]))
        self._optimizer.load_state_dict(cast("dict[str, object]", state_dict["optimizer"]))
        self._scheduler.load_state_dict(cast("dict[str, object]", state_dict["scheduler"]))
        self._generator.set_state(cast("Tensor", state_dict["generator"]))

    def _begin_phase(self, quantizer: MultiCodebookQuantizer) -> None:
        config = self._config

        lr, num_steps = config.lr, config.phase_one_steps

        if self.phase == 2:
            lr, num_steps = lr / 2, config.phase_two_steps

        self._quantizer = quantizer

        self._optimizer = Adam(quantizer.parameters(), lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=1e-6, fused=True)

        self._scheduler = StepLR(self._optimizer, max(num_steps // 4, 1), gamma=0.5)

    def _next_batch(self) -> Tensor:
        """Return the next frames (B, D) of an endless sequence of permutations of all frames."""
        num_frames, batch_frames = len(self._frames), self._config.batch_frames

        epoch, start = divmod(self._step * batch_frames, num_frames)

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


def _compute_statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (D) of frames (F, D), summed in float64."""
    chunks = frames.split(_CHUNK_SIZE)

    mean = torch.stack([c.sum(dim=0, dtype=torch.float64) for c in chunks]).sum(dim=0) / len(frames)

    variance = torch.stack([(c - mean).square().sum(dim=0) for c in chunks]).sum(dim=0) / len(frames)

    return mean.float(), variance.sqrt().float()

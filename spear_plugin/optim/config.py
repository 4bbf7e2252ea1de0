"""What a user can set of ScaledAdam and Eden. Source of the defaults: SPEAR's training code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from fairseq2.recipe.config import Default, ParameterGroupConfig, default
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

SCALED_ADAM_OPTIMIZER: Final = "scaled_adam"

EDEN_LR: Final = "eden"


@dataclass(kw_only=True)
class ScaledAdamOptions(Validatable):
    """The numbers of :class:`~spear_plugin.optim.ScaledAdam`."""

    lr: float = 0.045
    """Learning rate, above 0. Relative to a tensor's size, so about fifty times that of Adam."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the updates' moving average (momentum) and of the squared gradients', each in [0, 1)."""

    eps: float = 1e-8
    """Added to the root of the squared gradients, above 0."""

    clipping_scale: float | None = 2.0
    """Gradients are scaled down where their norm exceeds this many times the median norm, above 0; None never clips."""

    clipping_update_period: int = 100
    """Steps between two medians, at least 1; clipping starts after the first ones."""

    size_update_period: int = 4
    """Steps between two updates of a tensor's size (its root mean square, RMS), at least 1."""

    scalar_lr_scale: float = 0.1
    """Learning rate of tensors with one element and of tensors' sizes, relative to ``lr``, at least 0."""

    param_min_rms: float = 1e-5
    """Tensors with a smaller RMS move as if they had this one, above 0."""

    param_max_rms: float = 3.0
    """Tensors with a larger RMS are shrunk, above ``param_min_rms``."""

    scalar_max: float = 10.0
    """Largest absolute value of tensors with one element (before the last update), above 0."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("lr", "eps", "clipping_scale", "param_min_rms", "scalar_max"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                result.add_error(f"`{name}` must be positive, but is {value} instead.")

        for name in ("clipping_update_period", "size_update_period"):
            if (value := getattr(self, name)) < 1:
                result.add_error(f"`{name}` must be at least 1, but is {value} instead.")

        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            result.add_error(f"`betas` must be two numbers in [0, 1), but is {self.betas} instead.")

        if not self.scalar_lr_scale >= 0:
            result.add_error(f"`scalar_lr_scale` must be at least 0, but is {self.scalar_lr_scale} instead.")

        if not self.param_max_rms > self.param_min_rms:
            result.add_error(
                f"`param_max_rms` must be above `param_min_rms` ({self.param_min_rms}), but is {self.param_max_rms} "
                "instead."
            )

        return result


@dataclass(kw_only=True)
class ScaledAdamGroupConfig(ParameterGroupConfig, Validatable):
    """What may differ for the parameters whose names match ``params``; clipping is done for each group by itself."""

    lr: float | Default = default
    """See :class:`ScaledAdamOptions`, here and below."""

    betas: tuple[float, float] | Default = default

    eps: float | Default = default

    clipping_scale: float | Default | None = default

    scalar_lr_scale: float | Default = default

    param_min_rms: float | Default = default

    param_max_rms: float | Default = default

    scalar_max: float | Default = default

    @override
    def validate(self) -> ValidationResult:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "params"}

        return ScaledAdamOptions(**{name: value for name, value in values.items() if value != default}).validate()


@dataclass(kw_only=True)
class ScaledAdamConfig(ScaledAdamOptions):
    """The section ``optimizer.config`` where ``optimizer.name`` is ``scaled_adam``.

    ScaledAdam clips gradients by itself, so leave ``trainer.max_grad_norm`` unset. It needs whole tensors in float32:
    ``trainer.data_parallelism=ddp``, and ``trainer.mixed_precision.mode=auto`` for half precision.
    """

    groups: Sequence[ScaledAdamGroupConfig] = field(default_factory=list)
    """Groups of parameters; each parameter belongs to the first one that matches its name, else to a last one that
    takes the values above. Under DDP names start with ``module.``."""


@dataclass(kw_only=True)
class EdenLRConfig(Validatable):
    """The section ``lr_scheduler.config`` where ``lr_scheduler.name`` is ``eden``."""

    decay_steps: float = 7500.0
    """Steps after which the rate has fallen by 16 %, and from where on it falls with the root of the steps, above 0.
    Called ``lr_batches`` in SPEAR's code."""

    decay_hours: float = 25_000.0
    """The same for the hours of audio seen, above 0: SPEAR's ``lr_hours``. Used only with ``batch_seconds``."""

    batch_seconds: float | None = None
    """Audio in a batch of one process, above 0, in seconds: the recipe's ``dataset.max_batch_seconds``. Times the
    number of processes and of accumulated batches this gives the hours seen. None leaves the hours out."""

    num_warmup_steps: int = 500
    """Steps of linear warm-up, at least 0."""

    warmup_start: float = 0.5
    """Share of the rate at which warm-up starts, in [0, 1]."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("decay_steps", "decay_hours", "batch_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                result.add_error(f"`{name}` must be positive, but is {value} instead.")

        if self.num_warmup_steps < 0:
            result.add_error(f"`num_warmup_steps` must be at least 0, but is {self.num_warmup_steps} instead.")

        if not 0 <= self.warmup_start <= 1:
            result.add_error(f"`warmup_start` must be in [0, 1], but is {self.warmup_start} instead.")

        return result

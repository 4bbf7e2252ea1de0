from __future__ import annotations

from dataclasses import asdict

from fairseq2.error import NotSupportedError
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.nn.fsdp import FSDP1Module
from fairseq2.recipe.config import TrainerSection
from fairseq2.recipe.optim import prepare_parameter_groups
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationError
from torch.nn import Module
from torch.optim import Optimizer

from spear_plugin.optim.config import EdenLRConfig, ScaledAdamConfig, ScaledAdamOptions
from spear_plugin.optim.eden import EdenLR
from spear_plugin.optim.scaled_adam import SHARDED_MESSAGE, ScaledAdam


def create_scaled_adam(resolver: DependencyResolver, config: ScaledAdamConfig) -> ScaledAdam:
    """Create the optimizer for the recipe's model.

    Raises:
        ValidationError: If the model's parameters cannot be optimized, with the option that helps.
    """
    max_grad_norm = resolver.resolve(TrainerSection).max_grad_norm
    if max_grad_norm is not None:
        log.warning("ScaledAdam clips gradients by itself, but `trainer.max_grad_norm` ({:g}) clips them before. Set it to null.", max_grad_norm)  # noqa: E501  # fmt: skip

    model = resolver.resolve(Module)
    options = asdict(config)
    del options["groups"]
    try:
        if isinstance(model, FSDP1Module):
            raise NotSupportedError(SHARDED_MESSAGE)
        return ScaledAdam(prepare_parameter_groups(model, config.groups), ScaledAdamOptions(**options))
    except (NotSupportedError, ValueError) as ex:
        raise ValidationError(str(ex), field="optimizer") from None


def create_eden(resolver: DependencyResolver, config: EdenLRConfig) -> EdenLR:
    """Create the schedule for the recipe's optimizer, number of processes and gradient accumulation."""
    if config.batch_seconds is None:
        log.warning("Eden: `lr_scheduler.config.batch_seconds` is not set; the rate depends on steps alone, `decay_hours` is ignored.")  # noqa: E501  # fmt: skip
        hours_per_step = None
    else:
        num_batches = resolver.resolve(TrainerSection).grad_accumulation.num_batches
        hours_per_step = config.batch_seconds * num_batches * resolver.resolve(Gangs).dp.size / 3600.0

    return EdenLR(
        resolver.resolve(Optimizer),
        decay_steps=config.decay_steps,
        decay_hours=config.decay_hours,
        hours_per_step=hours_per_step,
        num_warmup_steps=config.num_warmup_steps,
        warmup_start=config.warmup_start,
    )

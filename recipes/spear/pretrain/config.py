from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fairseq2.recipe.config import (
    CommonSection,
    GangSection,
    LRSchedulerSection,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
)
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from recipes.common import default_common_section
from recipes.pretraining import PretrainDatasetSection
from recipes.targets import TargetSourceSection
from spear_plugin.data.mixing_options import MixingOptions
from spear_plugin.models.spear import SPEAR_FAMILY
from spear_plugin.optim import EDEN_LR, SCALED_ADAM_OPTIMIZER


@dataclass(kw_only=True)
class SpearDatasetSection(PretrainDatasetSection):
    """As of any pre-training; recordings longer than ``max_seconds`` are cut into consecutive pieces."""

    mixing: MixingOptions = field(default_factory=MixingOptions)
    """Noise and other utterances added to training examples; by default none. Validation stays clean."""


@dataclass(kw_only=True)
class BatchCountSection(Validatable):
    """How the encoder's schedules (dropout, skips, limits; see its ``regularization``) see the course of training.

    They count batches of a standard amount of audio, so that they suit any number and size of batches:
    ``batch_seconds`` x processes x accumulated batches / ``unit_seconds`` for each step.
    """

    batch_seconds: float | None = None
    """Audio in a batch of one process, in seconds. If ``None``, ``dataset.max_batch_seconds``."""

    unit_seconds: float = 600.0
    """Audio that counts as one batch, in seconds: 600 in the authors' code. Shorter runs can take less."""

    every_n_steps: int = 10
    """How often the schedules are told. In between their values stay as they are."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("batch_seconds", "unit_seconds", "every_n_steps"):
            if (value := getattr(self, name)) is not None and value <= 0:
                result.add_error(f"`{name}` must be positive, but is {value} instead.")
        return result


@dataclass(kw_only=True)
class RunningAverageSection(Validatable):
    """Mean of the weights over the run, kept beside training in float64 and saved with each checkpoint.

    ``recipes.spear.average`` makes models of it. The checkpoints grow by twice the size of the weights.
    """

    every_n_steps: int | None = None
    """How often a snapshot of the weights enters the mean: 200 in the authors' code. If ``None``, there is no mean."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.every_n_steps is not None and self.every_n_steps < 1:
            result.add_error(f"`every_n_steps` must be at least 1, but is {self.every_n_steps} instead.")
        return result


@dataclass(kw_only=True)
class SpearPretrainConfig(Validatable):
    model: ModelSection = field(default_factory=lambda: ModelSection(family=SPEAR_FAMILY, arch="base"))

    dataset: SpearDatasetSection = field(default_factory=SpearDatasetSection)

    online_targets: dict[str, TargetSourceSection] = field(default_factory=dict)
    """Teacher and quantizer of target streams whose codes are made in training, on the student's device. The codes of
    the other streams come from the corpora's stores."""

    batch_count: BatchCountSection = field(default_factory=BatchCountSection)

    running_average: RunningAverageSection = field(default_factory=RunningAverageSection)

    gang: GangSection = field(default_factory=GangSection)

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(mixed_precision=MixedPrecisionConfig(mode="off", dtype=torch.bfloat16))
    )

    # Without a `config`, which would be merged into that of another optimizer or schedule named in a file. The defaults
    # of these two are the paper's, as is the missing limit on gradients: ScaledAdam has its own.
    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(name=SCALED_ADAM_OPTIMIZER, config=None)
    )

    lr_scheduler: LRSchedulerSection = field(default_factory=lambda: LRSchedulerSection(name=EDEN_LR, config=None))

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=400_000,
            validate_every_n_steps=4_000,
            checkpoint_every_n_steps=4_000,
            publish_metrics_every_n_steps=200,
            keep_last_n_checkpoints=5,
            score_metric="masked_accuracy",
        )
    )

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.trainer.data_parallelism == "fsdp":
            self._check_sharding(result)
        # Teachers must hear what the student's targets are of, but the reader's waveforms are mixed already.
        mixing = self.dataset.mixing
        if self.online_targets and (mixing.has_noise or mixing.has_utterances):
            result.add_error(
                "`online_targets` cannot be used with `dataset.mixing`, whose targets are those of clean audio: encode "
                "the corpus with `recipes.mvq.encode`, or set the probabilities of mixing to 0."
            )
        return result

    def _check_sharding(self, result: ValidationResult) -> None:
        # Here, because fairseq2 does not shard with one process, where these would go unnoticed.
        if self.optimizer.name == SCALED_ADAM_OPTIMIZER:
            result.add_error(
                "`optimizer.name` must not be scaled_adam with `trainer.data_parallelism=fsdp`, because ScaledAdam "
                "needs whole tensors: use adamw, or ddp with `trainer.activation_checkpointing.mode=layerwise` to save "
                "memory."
            )
        if self.running_average.every_n_steps is not None:
            result.add_error(
                "`running_average.every_n_steps` must not be set with `trainer.data_parallelism=fsdp`: no process has "
                "the whole model. Average checkpoints instead, with `recipes.spear.average`."
            )
        if self.trainer.fsdp.version != "v2":
            result.add_error(f"`trainer.fsdp.version` must be v2, but is {self.trainer.fsdp.version}.")
        if self.trainer.mixed_precision.mode == "static":
            result.add_error(
                "`trainer.mixed_precision.mode` must be auto or off with `trainer.data_parallelism=fsdp`, but is "
                "static, which would round waveforms."
            )

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fairseq2.recipe.config import (
    TRI_STAGE_LR,
    AdamWConfig,
    CommonSection,
    GangSection,
    LRSchedulerSection,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
    TriStageLRConfig,
)

from recipes.common import default_common_section
from recipes.pretraining import PretrainDatasetSection
from spear_plugin.models.spidr import SPIDR_FAMILY


@dataclass(kw_only=True)
class SpidrDatasetSection(PretrainDatasetSection):
    """As of any pre-training, with the paper's values; no codes are needed.

    Recordings are standardized as a whole. Examples are random pieces of them, at most ``max_seconds`` long, and those
    of a batch as long as its shortest.
    """

    max_batch_seconds: float = 237.5
    """Most audio in a batch of one process, in seconds, before examples are cut to the shortest."""

    min_seconds: float = 0.125
    """Shorter recordings are skipped and counted."""

    max_seconds: float = 20.0
    """Of a longer recording, another piece is read in each epoch."""

    num_buckets: int = 1000
    """Number of length classes: more classes, less audio is cut off, less variety in a batch."""


@dataclass(kw_only=True)
class SpidrMetricsSection:
    """What is published beside the loss."""

    per_layer: bool = False
    """If ``True``, perplexities and usage of each codebook too, as ``layer_{n}_...``; the first layer is 1."""


@dataclass(kw_only=True)
class SpidrPretrainConfig:
    """The defaults are those of SpidR base (arXiv 2512.20308)."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=SPIDR_FAMILY, arch="base"))

    dataset: SpidrDatasetSection = field(default_factory=SpidrDatasetSection)

    metrics: SpidrMetricsSection = field(default_factory=SpidrMetricsSection)

    gang: GangSection = field(default_factory=GangSection)

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(
            mixed_precision=MixedPrecisionConfig(mode="off", dtype=torch.bfloat16), max_grad_norm=10.0
        )
    )

    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(
            config=AdamWConfig(lr=5e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.01)
        )
    )

    lr_scheduler: LRSchedulerSection = field(
        default_factory=lambda: LRSchedulerSection(
            name=TRI_STAGE_LR, config=TriStageLRConfig(stage_ratio=(0.03, 0.47, 0.5))
        )
    )

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=400_000,
            validate_every_n_steps=2_500,
            checkpoint_every_n_steps=2_500,
            publish_metrics_every_n_steps=250,
            keep_last_n_checkpoints=5,
        )
    )

    common: CommonSection = field(default_factory=default_common_section)

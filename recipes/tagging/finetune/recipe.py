from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from torch.nn import Module
from typing_extensions import override

from recipes.finetuning import Criterion, DownstreamTask, FinetuneRecipe
from recipes.tagging.finetune.config import MixupSection, TaggingFinetuneConfig
from recipes.tagging.finetune.mixup import Mixup
from recipes.tagging.finetune.unit import TaggingCriterion, TaggingValidUnit
from spear_plugin.data.audio import resampled_length
from spear_plugin.data.dataset import SpearDataset
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.options import ClassBalance
from spear_plugin.models.downstream import TAGGING_FAMILY, EncoderConfig, num_encoder_frames

_SAMPLE_RATE: Final = 16_000


@final
class TaggingFinetuneRecipe(FinetuneRecipe):
    """Binary cross-entropy of each label."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return TaggingFinetuneConfig

    @override
    def open_task(self, context: RecipeContext) -> DownstreamTask:
        config = context.get_config_as(TaggingFinetuneConfig)
        if config.labels is not None:
            labels = read_labels(config.labels)
        else:
            rows = context.get_dataset_as(SpearDataset).rows("train")
            labels = sorted({label for row in rows for label in row.labels})
            if not labels:
                raise RecipeError("`dataset`: no training row has a label. Make manifests with a column `label`.")
        log.info("{} labels.", len(labels))
        return TaggingTask(labels, config.mixup, config.balance)


@final
class TaggingTask(DownstreamTask):
    """Tagging with a vocabulary of labels."""

    def __init__(self, labels: Sequence[str], mixup: MixupSection, balance: ClassBalance | None) -> None:
        super().__init__(family=TAGGING_FAMILY, head={"labels": list(labels)}, balance=balance, card={})
        self._labels = labels
        self._known = frozenset(labels)
        self._mixup = mixup

    @override
    def check_row(self, row: ManifestRow, encoder: EncoderConfig) -> str | None:
        if not row.labels:
            return "which have no label"
        if not self._known.issuperset(row.labels):
            return "with a label that is not in the vocabulary"
        num_samples = resampled_length(row.num_samples, row.sample_rate, _SAMPLE_RATE)
        return "too short for a frame" if num_encoder_frames(num_samples, encoder) < 1 else None

    @override
    def create_criterion(self, model: Module, encoder: EncoderConfig) -> Criterion:
        return TaggingCriterion(model, self._labels, Mixup(self._mixup.probability, self._mixup.alpha))

    @override
    def create_valid_unit(self, model: Module, encoder: EncoderConfig) -> TaggingValidUnit:
        return TaggingValidUnit(TaggingCriterion(model, self._labels, None), len(self._labels))


def read_labels(path: Path) -> list[str]:
    """Return the labels in a file, one a line.

    Raises:
        RecipeError: If the file cannot be read, has no label or has one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as ex:
        raise RecipeError(f"`labels`: {path} cannot be read: {ex}. Write one label a line.") from None
    labels = [line.strip() for line in lines if line.strip()]
    if not labels or len(set(labels)) < len(labels):
        raise RecipeError(f"`labels`: {path} must have at least one label, and each once.")
    return labels

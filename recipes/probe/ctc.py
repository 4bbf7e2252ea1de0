"""Kind ``ctc``: phone recognition, SUPERB's (arXiv 2105.01051) linear head on every frame, trained by CTC.

Phones are those of the alignment, in order, or the words of the column ``text``.

Letters: L layers, N items of a batch, T frames, D width, V classes, the blank among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import select_items
from recipes.probe.task_files import Item, TaskFile
from recipes.probe.tasks import Features, Fit, ProbeTask, clusters_of, cut_segments
from spear_plugin.evaluation import (
    LayerHead,
    Score,
    Split,
    cluster_ratio,
    count_token_errors,
    fit_layer_sum,
    train_head,
)
from spear_plugin.models.downstream import decode_greedily


@final
@dataclass(frozen=True, kw_only=True)
class CtcTask(ProbeTask):
    """Items with a sequence of phones each."""

    kind = "ctc"
    is_error: ClassVar[bool] = True

    sequences: list[list[int]]
    """Of each item, from 1: 0 is the blank."""

    @property
    @override
    def metric(self) -> str:
        return "phone_error_rate"

    @property
    @override
    def chance(self) -> float:
        return 1.0  # of recognising nothing

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        return [frames.half() for frames in cut_segments(layers, self.items, items, timing)]

    @override
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        assert isinstance(features, list)
        tests, errors, weights = self.items.test.tolist(), [], []
        for split in self.items.splits:
            head = self._train(features, split, report)
            errors += self._count_errors(head, features, split.test.tolist())
            weights.append(head.layer_sum.layer_weights)
        lengths = [len(self.sequences[item]) for item in tests]
        return Fit(
            layer=0,
            statistic=cluster_ratio(errors, lengths, clusters_of(self.items, tests)),
            layer_weights=torch.stack(weights).mean(dim=0).tolist(),
        )

    @override
    def num_reports(self, num_layers: int, mode: str) -> int:
        return self.section.head.max_epochs * len(self.section.head.learning_rates) * len(self.items.splits)

    def _train(self, x: list[Tensor], split: Split, report: Callable[[], None]) -> LayerHead:
        train, valid = split.tuning[0]
        layer_sum = fit_layer_sum(torch.cat([x[item] for item in train.tolist()], dim=1))
        num_phones = sum(len(self.sequences[item]) for item in valid.tolist())

        def score(head: LayerHead) -> Score:
            error_rate = sum(self._count_errors(head, x, valid.tolist())) / num_phones
            return -error_rate, -self._loss(head, x, valid.tolist()).item()

        return train_head(
            lambda: LayerHead(deepcopy(layer_sum), Linear(x[0].size(-1), 1 + len(self.items.classes))),
            lambda head, items: self._loss(head, x, items.tolist()),
            score,
            train,
            self.section.head.training(),
            seed=self.seed,
            check_stop=report,
        )

    def _loss(self, head: LayerHead, x: list[Tensor], items: Sequence[int]) -> Tensor:
        """Return the mean over items of the loss of a phone; items with fewer frames than phones count nothing."""
        log_probs, lengths = _recognize(head, [x[item] for item in items])
        targets = [torch.tensor(self.sequences[item]) for item in items]
        return ctc_loss(
            log_probs.transpose(0, 1),  # (N, T, V) -> (T, N, V)
            torch.cat(targets),
            torch.tensor(lengths),
            torch.tensor([len(target) for target in targets]),
            zero_infinity=True,
        )

    @torch.no_grad()
    def _count_errors(self, head: LayerHead, x: list[Tensor], items: list[int]) -> list[int]:
        """Return the errors in each item."""
        errors, size = [], self.section.head.batch_size
        for batch in (items[start : start + size] for start in range(0, len(items), size)):
            hypotheses = decode_greedily(*_recognize(head, [x[item] for item in batch]))
            errors += [count_token_errors(self.sequences[i], h) for i, h in zip(batch, hypotheses, strict=True)]
        return errors


def open_ctc_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> CtcTask:
    """Make an item of each row that has phones."""
    spelt = [replace(item, labels=_phones(item, file, set(section.ignored_labels))) for item in file.items]
    items = select_items(file, [item for item in spelt if item.labels], section, name=name, seed=seed)
    numbers = {phone: number for number, phone in enumerate(items.classes, start=1)}
    sequences = [[numbers[phone] for phone in item.labels] for item in items.items]
    return CtcTask(items=items, sequences=sequences, section=section, seed=seed)


def _phones(item: Item, file: TaskFile, ignored_labels: set[str]) -> tuple[str, ...]:
    if file.alignment is None:
        return tuple(item.text.split())
    phones = (segment.phone for segment in file.alignment.get(item.id, ()))
    return tuple(phone for phone in phones if phone not in ignored_labels)


def _recognize(head: LayerHead, sequences: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Return log-probabilities (N, T, V) of sequences of (L, T, D), and their lengths."""
    lengths = [frames.size(1) for frames in sequences]
    # All frames as one (L, sum of T, D): no frame of padding is computed.
    log_probs = head(torch.cat(sequences, dim=1)).log_softmax(dim=-1)
    return pad_sequence(list(log_probs.split(lengths)), batch_first=True), lengths

"""Kind ``verification``: are two recordings of one speaker?

``NAME.trials.tsv`` beside ``NAME.tsv`` lists the trials (columns ``enrolment`` and ``test``, ids of rows of the test
part); labels are speakers. A small x-vector-like head learns to tell the training speakers apart, with an additive
margin (arXiv 1801.05599); trials are scored by the cosine of its embeddings. SUPERB's (arXiv 2105.01051) head is a
whole x-vector network on frames; this one reads mean and standard deviation of the frames.

Letters: L layers, N items, D width, E embedding, M trials.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cosine_similarity, cross_entropy, linear, normalize, one_hot
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.probe.config import ProbeSection
from recipes.probe.items import TaskItems, select_items
from recipes.probe.task_files import TaskFile
from recipes.probe.tasks import Features, Fit, ProbeTask, pool_segments, stack_pooled
from spear_plugin.evaluation import (
    EqualErrorStatistic,
    LayerHead,
    LayerSum,
    ProbeError,
    Score,
    accuracy,
    create_perceptron,
    equal_error_rate,
    fit_layer_sum,
    train_head,
)

_EMBEDDING_DIM: Final = 64
_MARGIN: Final = 0.4
_SCALE: Final = 30.0


@final
@dataclass(frozen=True, kw_only=True)
class VerificationTask(ProbeTask):
    """Items of speakers, and pairs of test items."""

    kind = "verification"
    is_error: ClassVar[bool] = True

    trials: Tensor
    """(M, 2) int64, indices of items."""

    @property
    @override
    def metric(self) -> str:
        return "equal_error_rate"

    @property
    @override
    def chance(self) -> float:
        return 0.5

    @override
    def describe(self, layers: Tensor, items: Tensor, timing: FrameTiming) -> Features:
        return pool_segments(layers, self.items, items, timing)

    @override
    def fit(self, features: Features, mode: str, *, report: Callable[[], None]) -> Fit:
        x = stack_pooled(features)
        layer_sum = fit_layer_sum(x[:, self.items.splits[0].tuning[0][0]])
        head = self._train(x, layer_sum, report)
        assert isinstance(head.head, SpeakerHead)
        with torch.no_grad():
            means = layer_sum(x)[:, : x.size(-1) // 2]
            embeddings = head.head.embed(head.layer_sum(x))
        return Fit(
            layer=0,
            statistic=self._measure(self._score_trials(embeddings)),
            layer_weights=head.layer_sum.layer_weights.tolist(),
            measures={"equal_error_rate_of_means": self._error_rate(self._score_trials(means))},
        )

    @override
    def num_reports(self, num_layers: int, mode: str) -> int:
        return self.section.head.max_epochs * len(self.section.head.learning_rates)

    def _train(self, x: Tensor, layer_sum: LayerSum, report: Callable[[], None]) -> LayerHead:
        train, valid = self.items.splits[0].tuning[0]
        speakers, labels = self.items.label_indices[train].unique(), self.items.label_indices
        targets = torch.searchsorted(speakers, labels)  # of the training speakers; of others meaningless

        def loss(head: LayerHead, items: Tensor, margin: float = _MARGIN) -> Tensor:
            y = targets[items]
            return cross_entropy(_SCALE * (head(x[:, items]) - margin * one_hot(y, speakers.numel())), y)

        def score(head: LayerHead) -> Score:
            return accuracy(head(x[:, valid]).argmax(dim=1), targets[valid]), -loss(head, valid, 0.0).item()

        return train_head(
            lambda: LayerHead(
                deepcopy(layer_sum), SpeakerHead(x.size(-1), self.section.head.hidden_dim, speakers.numel())
            ),
            loss,
            score,
            train,
            self.section.head.training(),
            seed=self.seed,
            check_stop=report,
        )

    def _score_trials(self, embeddings: Tensor) -> Tensor:
        """Return the cosine of both sides of each trial, (M,), from (N, E)."""
        return cosine_similarity(embeddings[self.trials[:, 0]], embeddings[self.trials[:, 1]], dim=1)

    def _measure(self, scores: Tensor) -> EqualErrorStatistic:
        sides = self.items.label_indices[self.trials]
        _, speakers = np.unique(sides.numpy(), return_inverse=True)
        first, second = speakers.reshape(-1, 2).T
        return EqualErrorStatistic(scores.double().numpy(), first, second)

    def _error_rate(self, scores: Tensor) -> float:
        first, second = self.items.label_indices[self.trials].T
        return equal_error_rate(scores.double().numpy(), (first == second).numpy())


@final
class SpeakerHead(Module):
    """From mean and deviation to an embedding, and to its cosine with a vector of each training speaker."""

    def __init__(self, dim: int, hidden_dim: int, num_speakers: int) -> None:
        super().__init__()
        self.embed = create_perceptron(dim, hidden_dim, _EMBEDDING_DIM)
        self.speakers = Parameter(torch.randn(num_speakers, _EMBEDDING_DIM))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, speakers)."""
        return linear(normalize(self.embed(x), dim=1), normalize(self.speakers, dim=1))


def open_verification_task(file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> VerificationTask:
    """Make an item of each row, and read the trials; those of items that were not drawn are left out."""
    path = file.path.with_suffix(".trials.tsv")
    pairs = _read_trials(path)
    items = select_items(file, file.items, section, name=name, seed=seed, has_new_labels=True, also=pairs)
    if len(items.splits) > 1:
        raise ProbeError(f"{file.path}: a task of the kind verification must have splits, not folds. Empty `fold`.")
    tests = {items.items[index].id: index for index in items.test.tolist()}
    known = {item.id for item in file.items if item.part == "test"}
    if unknown := sorted({id_ for pair in pairs for id_ in pair} - known):
        raise ProbeError(f"{path}: '{unknown[0]}' is not in the test part of {file.path.name}. Make the files anew.")
    trials = torch.tensor([[tests[a], tests[b]] for a, b in pairs if a in tests and b in tests]).reshape(-1, 2)
    _check_trials(path, items, trials)
    return VerificationTask(items=items, trials=trials, section=section, seed=seed)


def _read_trials(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            if not {"enrolment", "test"} <= set(reader.fieldnames or ()):
                raise ProbeError(f"{path}: a list of trials must have the columns enrolment and test.")
            return [(row["enrolment"], row["test"]) for row in reader]
    except OSError as ex:
        raise ProbeError(
            f"{path}: the trials cannot be read: {ex.strerror}. Make them with `recipes.corpus.packaged`."
        ) from None


def _check_trials(path: Path, items: TaskItems, trials: Tensor) -> None:
    first, second = items.label_indices[trials].reshape(-1, 2).T
    if not (first == second).any() or not (first != second).any():
        raise ProbeError(f"{path}: must have trials of one speaker and of two, among the items that are probed.")
    train = items.splits[0].tuning[0][0]
    if items.label_indices[train].unique().numel() < 2:
        raise ProbeError(f"{path}: the train split of the task must have at least two speakers.")

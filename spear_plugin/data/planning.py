"""Which examples make which batches: arithmetic on lengths, with the same result on all processes.

Examples come in *groups*, a batch of like lengths for each process, so that no process waits for one with longer audio.
Training draws a window of examples from the corpora by weight, sorts it by length buckets, cuts it into groups and
shuffles these. The order of a corpus is a function of (seed, epoch), what is drawn one of (seed, window), so a place in
the plan is a few numbers whatever the size of the corpora. A run may go on with another number of processes or other
batches: what is left of the window is cut anew, and no example of an epoch is repeated or lost.

Letters: E examples, R processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from spear_plugin.data.grouping import Examples, PlanOptions, bucket_edges, cut_groups, lengths_of
from spear_plugin.data.order import EndlessOrder
from spear_plugin.data.plan import Plan, PlanError, PlannedCorpus
from spear_plugin.data.seeds import derive_seed

__all__ = ["Plan", "PlanError", "PlannedCorpus", "TrainingPlan", "ValidationPlan"]

BATCHES_PER_BUCKET: Final = 5
"""Batches of a process and length bucket in a window. With more of them, more examples may meet in a batch."""

_MIN_WINDOW: Final = 1000


@final
@dataclass(frozen=True, kw_only=True)
class WindowStart:
    """Where a window begins."""

    number: int

    drawn: tuple[int, ...]
    """Examples drawn before from each corpus, over all epochs."""

    carried: Examples
    """Those of them that are in no group yet."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainingPosition:
    """A place between two groups."""

    window: WindowStart

    num_groups: int
    """Groups of the window that lie before."""


@final
class TrainingPlan(Plan[TrainingPosition]):
    """Weighted and shuffled, without end."""

    def __init__(self, corpora: Sequence[PlannedCorpus], options: PlanOptions) -> None:
        """Prepare the plan of the corpora, of which there is at least one."""
        self._lengths = [corpus.lengths for corpus in corpora]
        self._weights = tuple(corpus.weight for corpus in corpora)
        self._options = options
        self._shards = [corpus.shards for corpus in corpora]
        self._orders = [
            EndlessOrder(corpus.lengths.size, options.seed, index, corpus.shards)
            for index, corpus in enumerate(corpora)
        ]
        self._edges = bucket_edges(np.concatenate(self._lengths), options.num_buckets)
        self._shares = np.array(self._weights) / sum(self._weights)
        self._window_size = self._choose_window_size()

    def _choose_window_size(self) -> int:
        options = self._options
        means = [float(lengths.mean()) for lengths in self._lengths]
        num_batches = BATCHES_PER_BUCKET * options.num_buckets * options.num_processes
        size = round(num_batches * options.max_batch_length / float(self._shares @ means))
        # More than the corpora have would let examples meet themselves.
        size = min(size, max(sum(lengths.size for lengths in self._lengths), _MIN_WINDOW))
        return max(size, options.num_processes)

    @property
    @override
    def is_endless(self) -> bool:
        return True

    @override
    def begin(self) -> TrainingPosition:
        carried = np.empty((0, 3), dtype=np.int64)
        start = WindowStart(number=0, drawn=(0,) * len(self._lengths), carried=carried)
        return TrainingPosition(window=start, num_groups=0)

    @override
    def groups_from(self, position: TrainingPosition) -> Iterator[tuple[TrainingPosition, Examples]]:
        start, first = position.window, position.num_groups
        while True:
            groups, next_start = self._open_window(start)
            for index in range(first, len(groups)):
                yield TrainingPosition(window=start, num_groups=index + 1), groups[index]
            start, first = next_start, 0

    @override
    def to_state(self, position: TrainingPosition) -> dict[str, object]:
        return {
            "window": position.window.number,
            "drawn": position.window.drawn,
            "carried": torch.from_numpy(position.window.carried),
            "num_groups": position.num_groups,
            "weights": self._weights,
            "options": asdict(self._options),
            "corpora": self._fingerprint(),
        }

    @override
    def from_state(self, state: Mapping[str, Any]) -> TrainingPosition:
        if state.get("corpora") != self._fingerprint():
            raise PlanError(
                "The training corpora are not those of the checkpoint: their examples differ in number or length. "
                "Go on with the same manifests, code stores and limits of length, or start a run from the weights."
            )
        if (seed := state["options"]["seed"]) != self._options.seed:
            raise PlanError(
                f"The seed of the checkpoint's data is {seed}, but it is {self._options.seed} now, and epochs would be "
                f"in another order. Keep `common.seed`."
            )
        start = WindowStart(number=state["window"], drawn=state["drawn"], carried=state["carried"].numpy())
        position = TrainingPosition(window=start, num_groups=state["num_groups"])
        options, weights = PlanOptions(**state["options"]), state["weights"]
        if (options, weights) == (self._options, self._weights):
            return position
        corpora = [_Corpus(*parts) for parts in zip(self._lengths, weights, self._shards, strict=True)]
        return TrainingPlan(corpora, options)._leave(position)

    def _leave(self, position: TrainingPosition) -> TrainingPosition:
        """Return the position from which another plan goes on: what is left of the window is carried to its next."""
        groups, next_start = self._open_window(position.window)
        carried = np.concatenate([*groups[position.num_groups :], next_start.carried])
        return TrainingPosition(window=replace(next_start, carried=carried), num_groups=0)

    def _fingerprint(self) -> list[int]:
        # Another division into shards is another order.
        return [
            zlib.crc32(
                b"" if shards is None else np.ascontiguousarray(shards), zlib.crc32(np.ascontiguousarray(lengths))
            )
            for lengths, shards in zip(self._lengths, self._shards, strict=True)
        ]

    def _open_window(self, start: WindowStart) -> tuple[list[Examples], WindowStart]:
        """Return the groups of a window, and the window after it."""
        generator = np.random.default_rng(derive_seed("window", self._options.seed, start.number))
        drawn_examples, drawn = self._draw(start.drawn, generator)
        examples = np.concatenate([start.carried, drawn_examples])
        # Windows go up and down by turns: what is left at one end of the lengths comes first in the next window.
        examples, lengths = self._sort(examples, falling=start.number % 2 == 1)
        groups, carried = cut_groups(examples, lengths, self._options)
        order = generator.permutation(len(groups))
        next_start = WindowStart(number=start.number + 1, drawn=drawn, carried=carried)
        return [groups[index] for index in order], next_start

    def _draw(self, drawn: tuple[int, ...], generator: np.random.Generator) -> tuple[Examples, tuple[int, ...]]:
        corpora = generator.choice(len(drawn), size=self._window_size, p=self._shares)
        examples = np.empty((corpora.size, 3), dtype=np.int64)
        examples[:, 0] = corpora
        ends = []
        for index, first in enumerate(drawn):
            (places,) = np.nonzero(corpora == index)
            examples[places, 1], examples[places, 2] = self._orders[index].take(first, places.size)
            ends.append(first + places.size)
        return examples, tuple(ends)

    def _sort(self, examples: Examples, *, falling: bool) -> tuple[Examples, NDArray[np.int64]]:
        """Sort by bucket; within one, the order stays random."""
        lengths = lengths_of(examples, self._lengths)
        buckets = np.searchsorted(self._edges, lengths)
        order = np.argsort(-buckets if falling else buckets, kind="stable")
        return examples[order], lengths[order]


@final
class ValidationPlan(Plan[int]):
    """Each example once. The last group may have no examples for the last processes. A position counts groups."""

    def __init__(self, corpora: Sequence[PlannedCorpus], options: PlanOptions) -> None:
        """Prepare the plan of the corpora, of which there is at least one."""
        lengths = [corpus.lengths for corpus in corpora]
        segments = np.concatenate([np.arange(of_corpus.size) for of_corpus in lengths])
        corpus_indices = np.repeat(np.arange(len(lengths)), [of_corpus.size for of_corpus in lengths])
        examples = np.stack([corpus_indices, segments, np.zeros_like(segments)], axis=1)
        order = np.argsort(lengths_of(examples, lengths), kind="stable")
        examples = examples[order]
        self._groups, rest = cut_groups(examples, lengths_of(examples, lengths), options)
        if len(rest):
            self._groups.append(rest)

    @property
    @override
    def is_endless(self) -> bool:
        return False

    @override
    def begin(self) -> int:
        return 0

    @override
    def groups_from(self, position: int) -> Iterator[tuple[int, Examples]]:
        for index in range(position, len(self._groups)):
            yield index + 1, self._groups[index]

    @override
    def to_state(self, position: int) -> dict[str, object]:
        return {"num_groups": position}

    @override
    def from_state(self, state: Mapping[str, Any]) -> int:
        return int(state["num_groups"])


@final
@dataclass(frozen=True)
class _Corpus:
    lengths: NDArray[np.int64]
    weight: float
    shards: NDArray[np.uint32] | None

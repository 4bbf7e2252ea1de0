"""From a plan to batches, on fairseq2's native data pipeline.

groups of the plan -> read audio and codes of this process's batch, mix, pad -> prefetch

The state of a reader is its place in the plan; batches read in advance are read again after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Self, TypeVar, final

import numpy as np
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineError, read_sequence
from fairseq2.datasets import DataReader
from fairseq2.datasets.data_reader import DataReadError
from fairseq2.gang import Gang, Gangs
from fairseq2.logging import log
from typing_extensions import override

from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.grouping import Examples, PlanOptions
from spear_plugin.data.options import ReaderOptions, SpearDatasetError
from spear_plugin.data.planning import Plan, PlanError, TrainingPlan, ValidationPlan
from spear_plugin.data.reading import BatchLoader, CorpusView

PositionT = TypeVar("PositionT")


def create_pipeline_reader(
    corpora: Sequence[CorpusView], gangs: Gangs, options: ReaderOptions
) -> DataReader[SpearBatch]:
    """Return the reader of the data-parallel rank.

    :raises SpearDatasetError: If one example alone is longer than ``max_batch_seconds``.
    """
    longest = max(int(np.max(corpus.lengths)) for corpus in corpora)

    if longest > (max_batch_length := options.to_samples(options.max_batch_seconds)):
        raise SpearDatasetError(
            f"`max_batch_seconds` must be at least the longest example ({longest / options.sample_rate:.2f} s), "
            f"but is {options.max_batch_seconds}. Raise it or lower `max_seconds` ({options.max_seconds})."
        )

    plan_options = PlanOptions(
        num_processes=gangs.dp.size,
        max_batch_length=max_batch_length,
        max_growth=options.to_samples(options.mixing.max_growth),
        num_buckets=options.num_buckets,
        seed=options.seed,
    )
    loader = BatchLoader(corpora, options)

    if options.shuffle:
        return PlannedReader(TrainingPlan(corpora, plan_options), loader, gangs.dp, options)

    return PlannedReader(ValidationPlan(corpora, plan_options), loader, gangs.dp, options)


@final
class _GroupLoader:
    """Reads a process's batch of each group. The pipeline may not hold the reader, which would then never be freed."""

    def __init__(self, loader: BatchLoader, rank: int, num_processes: int, *, may_stand_in: bool) -> None:
        """Prepare the loader.

        Args:
            loader: Reads a batch.
            rank: Of this process.
            num_processes: Of the run.
            may_stand_in: If ``True``, a batch without any usable file is replaced by that of another process, so that
                all processes stay at the same place. If no file of the group can be read, all of them get None.
        """
        self._loader = loader
        self._rank = rank
        self._num_processes = num_processes
        self._num_tries = num_processes if may_stand_in else 1

    def __call__(self, item: tuple[PositionT, Examples]) -> tuple[PositionT, SpearBatch | None]:
        position, group = item

        for shift in range(self._num_tries):
            first = (self._rank + shift) % self._num_processes

            if (batch := self._loader(group[first :: self._num_processes])) is not None:
                if shift > 0:
                    log.warning("No file of a batch can be used; the batch of another process takes its place.")

                return position, batch

        return position, None


@final
class PlannedReader(DataReader[SpearBatch], Generic[PositionT]):
    """Reads the batches of one process. All processes are at the same place of the plan, without talking about it."""

    def __init__(self, plan: Plan[PositionT], loader: BatchLoader, gang: Gang, options: ReaderOptions) -> None:
        """Prepare the reader.

        Args:
            plan: The same on all processes.
            loader: Reads a batch.
            gang: The data-parallel processes.
            options: Of reading.
        """
        self._plan = plan
        self._loader = _GroupLoader(loader, gang.rank, gang.size, may_stand_in=plan.is_endless)
        self._options = options
        self._position = plan.begin()
        self._batches: Iterator[tuple[PositionT, SpearBatch | None]] | None = None

    def _open(self) -> Iterator[tuple[PositionT, SpearBatch | None]]:
        groups = self._plan.groups_from(self._position)

        # The reader keeps the place itself, so the pipeline's state is never asked for.
        if self._plan.is_endless:
            builder = DataPipeline.count().map(lambda _: next(groups))
        else:
            builder = read_sequence(list(groups))

        builder.map(self._loader, num_parallel_calls=self._options.num_parallel)
        builder.prefetch(self._options.num_prefetch)

        return iter(builder.and_return())

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[SpearBatch]:
        if self._batches is None:
            self._batches = self._open()

        batches: list[SpearBatch] = []
        num_read = 0

        while num_read < self._options.num_accumulate:
            try:
                self._position, batch = next(self._batches)
            except StopIteration:
                break
            except DataPipelineError as ex:
                raise DataReadError("Data pipeline failed to read next batch.") from ex

            if batch is not None:
                batches.append(batch)

            # In validation, a process without examples has nothing to do while others have.
            if batch is not None or not self._plan.is_endless:
                num_read += 1

        if num_read == 0:
            raise StopIteration

        return batches

    @override
    def reset(self) -> None:
        self._position = self._plan.begin()
        self._batches = None

    @override
    def state_dict(self) -> dict[str, object]:
        return self._plan.to_state(self._position)

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        try:
            self._position = self._plan.from_state(state_dict)
        except PlanError as ex:
            raise SpearDatasetError(str(ex)) from None

        self._batches = None

    @property
    @override
    def num_accumulate(self) -> int:
        return self._options.num_accumulate

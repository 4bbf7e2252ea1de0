"""Work in shards, blocks of a manifest's rows: made by any number of processes, and not lost by a stop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar, final

import numpy as np
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from typing_extensions import override

from recipes.failures import FailureLists, shard_name
from recipes.parts import CLAIM_FILE, WHOLE, Part, claim_completion
from recipes.tasks import StoppableTask, WorkClock
from spear_plugin.data.manifest import ManifestRow, ManifestTable, Seconds

_ROWS_AT_ONCE: Final = 1 << 20


@final
class RowShards:
    """A manifest in blocks of consecutive rows, the shards; rows are read from the file when they are asked for."""

    def __init__(self, rows: ManifestTable, firsts: Sequence[int]) -> None:
        """Cut the manifest at the ``firsts`` rows of its shards."""
        self.rows = rows
        self._ends = np.array([*firsts, len(rows)], dtype=np.int64)

    def __len__(self) -> int:
        return self._ends.size - 1

    def __getitem__(self, index: int) -> list[ManifestRow]:
        return self.rows[self._slice(index)]

    def num_rows(self, index: int) -> int:
        """Return the number of rows of a shard."""
        return int(self._ends[index + 1] - self._ends[index])

    def seconds(self, index: int) -> Seconds:
        """Return the audio of a shard."""
        block = self._slice(index)

        return float((self.rows.num_samples[block] / self.rows.sample_rates[block]).sum())

    def _slice(self, index: int) -> slice:
        return slice(int(self._ends[index]), int(self._ends[index + 1]))


def cut_by_number(rows: ManifestTable, size: int) -> RowShards:
    """Cut a manifest into shards of ``size`` rows; the last may have fewer."""
    return RowShards(rows, range(0, len(rows), size))


def cut_by_seconds(rows: ManifestTable, max_seconds: Seconds) -> RowShards:
    """Cut a manifest into shards of at most ``max_seconds`` of audio; a longer file is a shard of its own."""
    firsts: list[int] = []
    seconds = 0.0
    for index, duration in enumerate(_durations(rows)):
        seconds += duration
        if not firsts or seconds > max_seconds:
            firsts.append(index)
            seconds = duration
    return RowShards(rows, firsts)


def _durations(rows: ManifestTable) -> Iterator[Seconds]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(first, first + _ROWS_AT_ONCE)
        yield from (rows.num_samples[block] / rows.sample_rates[block]).tolist()


class ShardWriter(Protocol):
    """Writes the shards of a store, each whole or not at all."""

    def has_shard(self, index: int) -> bool:
        """Return whether a shard is there already."""

    def is_finished(self) -> bool:
        """Return whether the store is complete, and of the shards that are there."""


WriterT = TypeVar("WriterT", bound=ShardWriter)


class ShardTask(StoppableTask, Generic[WriterT]):
    """Writes a store in shards; of those of its part, process ``r`` of ``n`` takes number ``r``, ``r + n``, ..."""

    def __init__(self, context: RecipeContext, shards: RowShards, *, part: Part, activity: str) -> None:
        """Prepare the work.

        Args:
            context: Of the recipe; the store is its output folder.
            shards: The manifest in shards.
            part: Which of them this job makes.
            activity: What is done to the files, for the progress bar.
        """
        super().__init__()
        self._folder = context.output_dir
        self._gangs = context.gangs
        self._progress_reporter = context.progress_reporter
        self._failures = FailureLists(context.output_dir)
        self._shards = shards
        self._part = part
        self._activity = activity

    @abstractmethod
    def _open_writer(self) -> WriterT:
        """Open the store, or create it."""

    @abstractmethod
    def _make_shard(self, writer: WriterT, index: int, advance: Callable[[int], None]) -> None:
        """Write a shard; ``advance`` counts the files that are done."""

    @abstractmethod
    def _finish(self, writer: WriterT) -> None:
        """Complete the store, when all shards are there; called by one process, again if that was killed."""

    @override
    def run(self) -> None:
        gang = self._gangs.root
        with self._progress_reporter:
            # The first process writes the header, which the others then find.
            if gang.rank == 0:
                writer = self._open_writer()
            gang.barrier()
            if gang.rank != 0:
                writer = self._open_writer()

            self._make_shards(writer)
            gang.barrier()
            if gang.rank == 0:
                self._complete(writer)

        self._gangs.close()

    def _make_shards(self, writer: WriterT) -> WorkClock | None:
        """Make the missing shards of this process; return the clock of the work, or None if there was nothing to do."""
        gang = self._gangs.root
        mine = range(len(self._shards))[self._part.index :: self._part.count][gang.rank :: gang.size]
        pending = [index for index in mine if not writer.has_shard(index)]
        if len(pending) < len(mine):
            log.info("{} of {} shards are there already.", len(mine) - len(pending), len(mine))

        num_rows = sum(self._shards.num_rows(index) for index in pending)
        clock = WorkClock(sum(self._shards.seconds(index) for index in pending))
        with self._progress_reporter.create_task(f"{self._activity} (files)", total=num_rows) as progress:
            for index in pending:
                self._make_shard(writer, index, progress.step)
                self.count_step()
                pace = clock.advance(self._shards.seconds(index))
                log.info("Shard {} of {} written; {}.", index + 1, len(self._shards), pace)
        return clock if pending else None

    def _complete(self, writer: WriterT) -> None:
        """Complete the store, unless shards of other parts are missing or another part does it."""
        if self._part == WHOLE:
            self._finish(writer)
            (self._folder / CLAIM_FILE).unlink(missing_ok=True)  # of a part that was killed
            return
        # From the end, where a shard that is not there yet is found soon.
        missing = next((n for n in reversed(range(len(self._shards))) if not writer.has_shard(n)), None)
        if missing is not None:
            other = Part(missing % self._part.count, self._part.count)
            log.info("Part {} is done. The last one completes the store; part {} is not done yet.", self._part, other)
            return
        with claim_completion(self._folder, self._part, writer.is_finished) as objection:
            if objection is None:
                self._finish(writer)
            else:
                log.info("Part {} is done. {}", self._part, objection)

    def _write_failures(self, index: int, failures: Mapping[str, str]) -> None:
        """Replace the list of a shard's unusable files, id to problem."""
        rows = self._shards[index]
        self._failures.write(shard_name(index), [(row.id, failures[row.id]) for row in rows if row.id in failures])

    def _warn_of_failures(self, num_failures: int) -> None:
        if num_failures:
            log.warning("{:,} files are left out; {} says why.", num_failures, self._folder / "failed.tsv")

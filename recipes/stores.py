"""What recipes that write a feature store share: shards, made by any number of processes, that a stop does not lose.

Letters: N batch, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.utils.validation import ValidationResult
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.common import check_failures, read_batches
from recipes.parts import PartedCorpusSection
from recipes.shards import RowShards, ShardTask
from recipes.tasks import WorkClock
from spear_plugin.data.feature_writer import FeatureStoreWriter, StoredFeatures
from spear_plugin.data.features import FeatureStoreMeta
from spear_plugin.data.manifest import ManifestRow


@dataclass(kw_only=True)
class StoreCorpusSection(PartedCorpusSection):
    """The audio, and how much of it is worked off at once."""

    max_shard_seconds: float = 600.0
    """Audio in a shard, the unit of work, which is kept in memory: 600 s are 61 MB for the output of Base in float32, 2
    GB for all layers of XLarge. Shards go to the processes in turn, a killed run loses unfinished ones."""

    @override
    def validate(self) -> ValidationResult:
        result = PartedCorpusSection.validate(self)

        if self.max_shard_seconds <= 0:
            result.add_error(f"`max_shard_seconds` must be positive, but is {self.max_shard_seconds}.")

        return result


class FeatureMaker(Protocol):
    """Makes what is stored of waveforms."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""

    def num_frames(self, num_samples: int) -> int:
        """Return the frames of a waveform; files that have none are left out."""

    def make(self, waveforms: Tensor, lengths: Tensor) -> list[StoredFeatures]:
        """Return what is stored, on the CPU, of each of the ``waveforms`` (N, S), zero beyond ``lengths`` (N,)."""


class StoreTask(ShardTask[FeatureStoreWriter]):
    """Writes the feature store of a manifest."""

    def __init__(
        self,
        context: RecipeContext,
        section: StoreCorpusSection,
        shards: RowShards,
        meta: FeatureStoreMeta,
        maker: FeatureMaker,
    ) -> None:
        """Prepare the work.

        Args:
            context: Of the recipe; the store is its output folder.
            section: How the corpus is read.
            shards: The manifest in shards, as many as ``meta`` says.
            meta: What is stored.
            maker: Makes it.
        """
        super().__init__(context, shards, part=section.own_part, activity="extract")
        self._section = section
        self._maker = maker
        self._meta = meta

    def write_results(self, folder: Path) -> None:
        """Add to the finished store in ``folder`` what else a recipe has to show; called by the first process."""

    @override
    def _open_writer(self) -> FeatureStoreWriter:
        return FeatureStoreWriter(self._folder, self._meta, (row.id for row in self._shards.rows))

    @override
    def _make_shards(self, writer: FeatureStoreWriter) -> WorkClock | None:
        clock = super()._make_shards(writer)
        if clock is not None:
            log.info("{}", clock.summary())
        return clock

    @override
    def _make_shard(self, writer: FeatureStoreWriter, index: int, advance: Callable[[int], None]) -> None:
        rows, maker = self._shards[index], self._maker
        features: dict[str, StoredFeatures] = {}
        failures: dict[str, str] = {}
        self._write_failures(index, {})
        num_failures = self._failures.count()

        for batch, reads in read_batches(
            rows, self._section, sample_rate=maker.sample_rate, num_frames=maker.num_frames, reader=maker.name
        ):
            for row, result in zip(batch, self._extract_batch(batch, reads), strict=True):
                if isinstance(result, StoredFeatures):
                    features[row.id] = result
                else:
                    log.warning("{}", result)
                    failures[row.id] = result
            check_failures(num_failures + len(failures), self._section, self._folder)
            advance(len(batch))
            self.check_stop()

        self._write_failures(index, failures)
        writer.write_shard(index, {row.id: features[row.id] for row in rows if row.id in features})

    def _extract_batch(self, rows: list[ManifestRow], reads: list[Tensor | str]) -> list[StoredFeatures | str]:
        """Return what is stored of each file, or why there is nothing."""
        waveforms = [read for read in reads if isinstance(read, Tensor)]
        if not waveforms:
            return [read for read in reads if isinstance(read, str)]

        device = self._gangs.root.device
        lengths = torch.tensor([waveform.numel() for waveform in waveforms])
        with torch.inference_mode():
            padded = pad_sequence(waveforms, batch_first=True)
            made = iter(self._maker.make(padded.to(device), lengths.to(device)))

        results: list[StoredFeatures | str] = []
        for row, read in zip(rows, reads, strict=True):
            result = read if isinstance(read, str) else next(made)
            if isinstance(result, StoredFeatures) and not result.values.isfinite().all():
                result = f"{row.path}: {self._maker.name} gives features that are no finite {self._meta.dtype} numbers"
            results.append(result)
        return results

    @override
    def _finish(self, writer: FeatureStoreWriter) -> None:
        num_files = writer.finish()
        num_failures = self._failures.merge()
        log.info("{}: features of {:,} of {:,} files.", self._folder, num_files, num_files + num_failures)
        self._warn_of_failures(num_failures)
        self.write_results(self._folder)

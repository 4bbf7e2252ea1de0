from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.common import check_failures, read_batches
from recipes.extract.config import ExtractConfig
from recipes.extract.corpus import find_manifest
from recipes.failures import FailureLists, shard_name
from recipes.features import FeatureSource, open_source
from recipes.tasks import StoppableTask, WorkClock
from spear_plugin.data.feature_writer import FeatureStoreWriter, StoredFeatures
from spear_plugin.data.features import FeatureStoreMeta
from spear_plugin.data.manifest import ManifestRow, Seconds, read_manifest, rows_digest


@final
class ExtractRecipe(Recipe):
    """Writes features of a corpus to a feature store."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(ExtractConfig)
        source = open_source(config.source, device=context.device, output_only=config.layers == "last")
        layers = choose_layers(config.layers, source)
        rows = read_manifest(find_manifest(config.corpus, context.output_dir, context.gangs.root))
        return ExtractTask(context, rows, source, layers)

    @property
    @override
    def config_kls(self) -> type[object]:
        return ExtractConfig


def choose_layers(layers: str | list[int], source: FeatureSource) -> list[int]:
    """Return the indices of the layers to write.

    Raises:
        RecipeError: If the source has no such layer, or the layers are of different widths.
    """
    number = len(source.layer_dims)
    chosen = list(range(number)) if layers == "all" else [number - 1] if isinstance(layers, str) else layers
    if chosen[-1] >= number:
        raise RecipeError(f"`layers` must be below {number}, the layers of {source.name}, but are {chosen}.")
    if len(widths := {source.layer_dims[layer] for layer in chosen}) > 1:
        raise RecipeError(f"`layers` must be of one width, but are of {sorted(widths)}. Extract them one by one.")
    return chosen


def make_shards(rows: Sequence[ManifestRow], max_seconds: Seconds) -> list[list[ManifestRow]]:
    """Cut the rows into blocks of at most ``max_seconds`` of audio; a longer file is a block of its own."""
    shards: list[list[ManifestRow]] = []
    seconds = 0.0
    for row in rows:
        seconds += row.duration
        if not shards or seconds > max_seconds:
            shards.append([])
            seconds = row.duration
        shards[-1].append(row)
    return shards


@final
class ExtractTask(StoppableTask):
    """Extracts the manifest in shards; process ``r`` of ``n`` takes shards ``r``, ``r + n``, ..."""

    def __init__(
        self, context: RecipeContext, rows: list[ManifestRow], source: FeatureSource, layers: list[int]
    ) -> None:
        super().__init__()
        config = context.get_config_as(ExtractConfig)
        self._section = config.corpus
        self._output = config.output
        self._folder = context.output_dir
        self._gangs = context.gangs
        self._progress_reporter = context.progress_reporter
        self._source = source
        self._layers = layers
        self._has_layer_axis = config.layers != "last"
        self._failures = FailureLists(context.output_dir)
        self._ids = [row.id for row in rows]
        self._shards = make_shards(rows, config.corpus.max_shard_seconds)
        self._meta = FeatureStoreMeta(
            source=source.identity,
            layers=layers if self._has_layer_axis else "last",
            pooling=config.output.pooling,
            dtype=config.output.dtype,
            file_format=config.output.format,
            dim=source.layer_dims[layers[0]],
            frame_rate_hz=source.timing.rate_hz,
            first_centre=source.timing.first_centre,
            manifest=rows_digest(rows),
            max_shard_seconds=config.corpus.max_shard_seconds,
            num_shards=len(self._shards),
        )

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

            self._extract_shards(writer)
            gang.barrier()
            if gang.rank == 0:
                self._finish(writer)

        self._gangs.close()

    def _open_writer(self) -> FeatureStoreWriter:
        return FeatureStoreWriter(self._folder, self._meta, self._ids)

    def _extract_shards(self, writer: FeatureStoreWriter) -> None:
        gang = self._gangs.root
        mine = range(gang.rank, len(self._shards), gang.size)
        pending = [index for index in mine if not writer.has_shard(index)]
        if len(pending) < len(mine):
            log.info("{} of {} shards are there already.", len(mine) - len(pending), len(mine))

        num_rows = sum(len(self._shards[index]) for index in pending)
        clock = WorkClock(sum(row.duration for index in pending for row in self._shards[index]))
        with self._progress_reporter.create_task("extract (files)", total=num_rows) as progress:
            for index in pending:
                self._extract_shard(writer, index, progress.step)
                self.count_step()
                pace = clock.advance(sum(row.duration for row in self._shards[index]))
                log.info("Shard {} of {} written; {}.", index + 1, len(self._shards), pace)

    def _extract_shard(self, writer: FeatureStoreWriter, index: int, advance: Callable[[int], None]) -> None:
        rows, source = self._shards[index], self._source
        features: dict[str, StoredFeatures] = {}
        failures: dict[str, str] = {}
        self._failures.write(shard_name(index), [])
        num_failures = self._failures.count()

        for batch, reads in read_batches(
            rows, self._section, sample_rate=source.sample_rate, num_frames=source.num_frames, reader=source.name
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

        self._failures.write(shard_name(index), [(row.id, failures[row.id]) for row in rows if row.id in failures])
        writer.write_shard(index, {row.id: features[row.id] for row in rows if row.id in features})

    def _extract_batch(self, rows: list[ManifestRow], reads: list[Tensor | str]) -> list[StoredFeatures | str]:
        """Return the features of each file, or why it has none."""
        waveforms = [read for read in reads if isinstance(read, Tensor)]
        if not waveforms:
            return [read for read in reads if isinstance(read, str)]

        device = self._gangs.root.device
        lengths = torch.tensor([waveform.numel() for waveform in waveforms])
        with torch.inference_mode():
            # (N, S) -> L x (N, T, D), (N,)
            layers, num_frames = self._source.extract(
                pad_sequence(waveforms, batch_first=True).to(device), lengths.to(device)
            )
            stacked = torch.stack([layers[layer] for layer in self._layers])
            extracted = iter([self._finish_file(stacked[:, n, :count]) for n, count in enumerate(num_frames.tolist())])

        results: list[StoredFeatures | str] = []
        for row, read in zip(rows, reads, strict=True):
            result = read if isinstance(read, str) else next(extracted)
            if isinstance(result, StoredFeatures) and not result.values.isfinite().all():
                result = (
                    f"{row.path}: {self._source.name} gives features that are no finite {self._output.dtype} numbers"
                )
            results.append(result)
        return results

    def _finish_file(self, frames: Tensor) -> StoredFeatures:
        """Pool, cut and copy the frames (L, T, D) of a file as they are written."""
        values = frames.mean(dim=1) if self._output.pooling == "mean" else frames
        if not self._has_layer_axis:
            values = values[0]
        dtype = torch.float16 if self._output.dtype == "float16" else torch.float32
        # A copy: a view would keep the whole batch in memory.
        values = values.to("cpu", dtype).clone(memory_format=torch.contiguous_format)
        return StoredFeatures(values, frames.size(1))

    def _finish(self, writer: FeatureStoreWriter) -> None:
        num_files = writer.finish()
        num_failures = self._failures.merge()
        log.info("{}: features of {:,} of {:,} files.", self._folder, num_files, num_files + num_failures)
        if num_failures:
            log.warning("{:,} files are left out; {} says why.", num_failures, self._folder / "failed.tsv")

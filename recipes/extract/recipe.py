from __future__ import annotations

from typing import final

import torch
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from torch import Tensor
from typing_extensions import override

from recipes.chunked_sources import ChunkedSource
from recipes.extract.config import ExtractConfig
from recipes.extract.corpus import find_manifest
from recipes.feature_sources import FeatureSource
from recipes.features import open_source
from recipes.shards import cut_by_seconds
from recipes.stores import FeatureMaker, StoreTask
from spear_plugin.data.feature_writer import StoredFeatures
from spear_plugin.data.features import FeatureStoreMeta
from spear_plugin.data.manifest import read_manifest, rows_digest


@final
class ExtractRecipe(Recipe):
    """Writes features of a corpus to a feature store."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(ExtractConfig)
        source = open_source(config.source, device=context.device, output_only=config.layers == "last")
        layers = choose_layers(config.layers, source)
        dim, kept = source.layer_dims[layers[0]], layers
        if config.chunks is not None:
            source = ChunkedSource(source, config.chunks, layers, output_only=config.layers == "last")
            kept = list(range(len(layers)))
        rows = read_manifest(find_manifest(config.corpus, context.output_dir, context.gangs.root))
        shards = cut_by_seconds(rows, config.corpus.max_shard_seconds)
        meta = FeatureStoreMeta(
            source=source.identity,
            layers=layers if config.layers != "last" else "last",
            pooling=config.output.pooling,
            dtype=config.output.dtype,
            file_format=config.output.format,
            dim=dim,
            frame_rate_hz=source.timing.rate_hz,
            first_centre=source.timing.first_centre,
            manifest=rows_digest(rows),
            max_shard_seconds=config.corpus.max_shard_seconds,
            num_shards=len(shards),
        )
        return StoreTask(context, config.corpus, shards, meta, LayerMaker(source, kept, meta))

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


@final
class LayerMaker(FeatureMaker):
    """Makes the chosen layers of a source."""

    def __init__(self, source: FeatureSource, layers: list[int], meta: FeatureStoreMeta) -> None:
        self._source = source
        self._layers = layers
        self._meta = meta

    @property
    @override
    def name(self) -> str:
        return self._source.name

    @property
    @override
    def sample_rate(self) -> int:
        return self._source.sample_rate

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._source.num_frames(num_samples)

    @override
    def make(self, waveforms: Tensor, lengths: Tensor) -> list[StoredFeatures]:
        # (N, S) -> L x (N, T, D), (N,)
        layers, num_frames = self._source.extract(waveforms, lengths)
        stacked = torch.stack([layers[layer] for layer in self._layers])
        return [self._finish_file(stacked[:, n, :count]) for n, count in enumerate(num_frames.tolist())]

    def _finish_file(self, frames: Tensor) -> StoredFeatures:
        """Pool, cut and copy the frames (L, T, D) of a file as they are written."""
        values = frames.mean(dim=1) if self._meta.pooling == "mean" else frames
        if self._meta.layers == "last":
            values = values[0]
        dtype = torch.float16 if self._meta.dtype == "float16" else torch.float32
        # A copy: a view would keep the whole batch in memory.
        values = values.to("cpu", dtype).clone(memory_format=torch.contiguous_format)
        return StoredFeatures(values, frames.size(1))

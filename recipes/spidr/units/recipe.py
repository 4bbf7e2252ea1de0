from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FeatureSource, SpearSource, SpidrSource
from recipes.features import open_source
from recipes.models import find_card, load_encoder, weights_digest
from recipes.shards import cut_by_seconds
from recipes.spidr.units.config import SpidrUnitsConfig
from recipes.spidr.units.kmeans import KMEANS_FILE, fit_clusters, read_clusters, write_clusters
from recipes.spidr.units.maker import (
    FeatureReader,
    FrameMaker,
    FrameReader,
    ProbabilityReader,
    SourceReader,
    UnitMaker,
)
from recipes.stores import FeatureMaker, StoreTask
from spear_plugin.data.features import FeatureStore, FeatureStoreMeta
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow, ManifestTable, read_manifest, rows_digest
from spear_plugin.models.spear import SPEAR_FAMILY
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel

UNITS_FILE: Final = "units.txt"


@final
class SpidrUnitsRecipe(Recipe):
    """Writes units, head probabilities or features of a corpus."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return SpidrUnitsConfig

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(SpidrUnitsConfig)
        rows = read_manifest(config.corpus.manifest_path)
        reader, source = _open_reader(context, config)
        num_units = None
        if config.content != "units":
            dtype = torch.float16 if config.dtype == "float16" else torch.float32
            maker: FeatureMaker = FrameMaker(reader, dtype)
        else:
            centres = None
            num_units = reader.dim
            if config.units_from == "kmeans":
                centres = _find_clusters(context, config, reader, rows)
                source += f" kmeans {hashlib.sha256(centres.numpy().tobytes()).hexdigest()[:16]}"
                num_units = centres.size(0)
                centres = centres.to(context.device)
            maker = UnitMaker(reader, centres, deduplicate=config.deduplicate)
        return _create_task(context, config, rows, reader, maker, source, num_units)


def _open_reader(context: RecipeContext, config: SpidrUnitsConfig) -> tuple[FrameReader, str]:
    """Return what reads frames, and the name of what it reads."""
    if config.kind != "model":
        return _open_source_reader(open_source(config, device=context.device), config)
    assert config.checkpoint is not None  # by the validation of the configuration
    families = (SPIDR_FAMILY, SPEAR_FAMILY) if config.is_of_features else (SPIDR_FAMILY,)
    model = load_encoder(
        find_card(config.checkpoint, config.checkpoint_key, *families), config.checkpoint, device=context.device
    )
    if not isinstance(model, SpidrModel):
        return _open_source_reader(SpearSource(model), config)
    first_head, last = model.first_head_layer + 1, model.config.encoder.num_layers
    source = f"spidr:{weights_digest(model)} layer {config.layer}"
    if config.is_of_features:
        _check_layer(config, f"of {SpidrSource.name}", 1, last)
        return FeatureReader(model, config.layer), source
    _check_layer(config, "with a head", first_head, last)
    return ProbabilityReader(model, config.layer), f"{source} head"


def _open_source_reader(source: FeatureSource, config: SpidrUnitsConfig) -> tuple[FrameReader, str]:
    _check_layer(config, f"of {source.name}", 1, len(source.layer_dims))
    return SourceReader(source, config.layer), f"{source.identity} layer {config.layer}"


def _create_task(
    context: RecipeContext,
    config: SpidrUnitsConfig,
    rows: ManifestTable,
    reader: FrameReader,
    maker: FeatureMaker,
    source: str,
    num_units: int | None,
) -> Task:
    shards = cut_by_seconds(rows, config.corpus.max_shard_seconds)
    is_of_units = config.content == "units"
    meta = FeatureStoreMeta(
        source=source,
        layers="last",
        pooling="runs" if is_of_units and config.deduplicate else "none",
        dtype="int16" if is_of_units else config.dtype,
        file_format="safetensors",
        dim=1 if is_of_units else reader.dim,
        frame_rate_hz=reader.timing.rate_hz,
        first_centre=reader.timing.first_centre,
        manifest=rows_digest(rows),
        max_shard_seconds=config.corpus.max_shard_seconds,
        num_shards=len(shards),
        num_units=num_units,
    )
    kls = UnitsTask if is_of_units else StoreTask
    return kls(context, config.corpus, shards, meta, maker)


@final
class UnitsTask(StoreTask):
    """Writes units as text, too."""

    @override
    def write_results(self, folder: Path) -> None:
        store = FeatureStore(folder)
        num_units = 0
        with atomic_file(folder / UNITS_FILE) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for id_ in store:
                units = store[id_].tolist()
                num_units += len(units)
                stream.write(f"{id_}\t{' '.join(map(str, units))}\n")
        log.info("{}: {:,} units of {:,} recordings.", folder / UNITS_FILE, num_units, len(store))


def _check_layer(config: SpidrUnitsConfig, what: str, first: int, last: int) -> None:
    if not first <= config.layer <= last:
        raise RecipeError(f"`layer` must be one {what}, from {first} to {last}, but is {config.layer}.")


def _find_clusters(
    context: RecipeContext, config: SpidrUnitsConfig, reader: FrameReader, rows: Sequence[ManifestRow]
) -> Tensor:
    """Return the clusters that the configuration names, or those of OUT, which the first process fits once."""
    if config.kmeans.path is not None:
        return read_clusters(config.kmeans.path, reader.dim)
    path, gang = context.output_dir / KMEANS_FILE, context.gangs.root
    if gang.rank == 0 and not path.exists():
        write_clusters(path, fit_clusters(reader, rows, config, context.device))
    gang.barrier()
    return read_clusters(path, reader.dim)

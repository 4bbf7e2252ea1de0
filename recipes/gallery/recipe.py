from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.code_counts import count_codes
from recipes.features import open_source
from recipes.figures import draw_points, draw_usage, save_png
from recipes.frame_readers import SourceReader
from recipes.gallery.config import GalleryConfig, MaskedSection
from recipes.gallery.frames import choose_points, group_points, place_points, read_points
from recipes.masked_example import choose_row, draw_example
from recipes.models import find_spear_card, load_spear_model
from recipes.tasks import StoppableTask
from spear_plugin.data.codes import CodeStore
from spear_plugin.data.manifest import read_manifest
from spear_plugin.models.spear import SpearConfig


@final
class GalleryRecipe(Recipe):
    """Draws what a model has learnt."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        return GalleryTask(context.get_config_as(GalleryConfig), context.output_dir, context.device)

    @property
    @override
    def config_kls(self) -> type[object]:
        return GalleryConfig


@final
class GalleryTask(StoppableTask):
    """Writes the pictures that the configuration asks for."""

    def __init__(self, config: GalleryConfig, folder: Path, device: torch.device) -> None:
        super().__init__()
        self._config = config
        self._folder = folder
        self._device = device

    @override
    def run(self) -> None:
        pictures = {
            "frames_by_phone.png": (self._draw_frames, bool(self._config.features)),
            "masked_prediction.png": (self._draw_masked, self._config.masked.checkpoint is not None),
            "codebook_usage.png": (self._draw_usage, bool(self._config.stores)),
        }
        for name, (draw, is_wanted) in pictures.items():
            if is_wanted:
                draw(self._folder / name)
                log.info("{} written.", self._folder / name)
            self.check_stop()

    def _draw_frames(self, path: Path) -> None:
        config = self._config
        points = choose_points(config)
        groups = {}
        for section in config.features:
            log.info("Reading frames of '{}'.", section.name)
            source = open_source(section, device=self._device, seed=config.common.seed)
            frames = read_points(SourceReader(source, config.corpus, self._device), section.layer, points)
            placed = place_points(frames, perplexity=config.frames.perplexity, seed=config.common.seed)
            groups[section.name] = group_points(points, placed)
            self.check_stop()
        save_png(path, draw_points(groups))

    def _draw_masked(self, path: Path) -> None:
        section, manifest = self._config.masked, self._config.corpus.manifest_path
        assert section.checkpoint is not None  # by the caller
        assert section.codes is not None  # by the validation of the section
        card = find_spear_card(section.checkpoint, "`masked.checkpoint`")
        model = load_spear_model(card, section.checkpoint, device=self._device)
        rows = [row for row in read_manifest(manifest) if row.id == section.id]
        if section.id is not None and not rows:
            raise RecipeError(f"`masked.id`: {manifest} has no recording '{section.id}'.")
        row = rows[0] if rows else choose_row(manifest)
        store = CodeStore(section.codes)
        _check_stream(model.config, section, store)
        save_png(path, draw_example(model, row, store, stream=section.stream, seed=self._config.common.seed))

    def _draw_usage(self, path: Path) -> None:
        counts = {name: count_codes(folder).entries for name, folder in self._config.stores.items()}
        save_png(path, draw_usage(counts))


def _check_stream(config: SpearConfig, section: MaskedSection, store: CodeStore) -> None:
    """Raise :class:`RecipeError` if the model does not predict such codes."""
    streams = {stream.name: stream for stream in config.target_streams}
    if (stream := streams.get(section.stream)) is None:
        raise RecipeError(
            f"`masked.stream` must be a stream of {section.checkpoint} ({', '.join(streams) or 'it has none'}), but is "
            f"'{section.stream}'."
        )
    predicted = (stream.num_codebooks, stream.codebook_size, stream.frame_rate_hz)
    stored = (store.identity.num_codebooks, store.identity.codebook_size, store.identity.frame_rate_hz)
    if predicted != stored:
        raise RecipeError(
            f"`masked.codes`: {section.codes} holds {stored[0]} codebooks of {stored[1]} at {stored[2]:g} Hz, but the "
            f"model's stream '{section.stream}' has {predicted[0]} of {predicted[1]} at {predicted[2]:g} Hz."
        )

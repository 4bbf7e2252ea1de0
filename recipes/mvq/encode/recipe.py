from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.task import Task
from typing_extensions import override

from recipes.common import EmbeddedUtterance, check_failures, embed_corpus
from recipes.mvq.encode.config import MvqEncodeConfig
from recipes.shards import ShardTask, cut_by_number
from recipes.targets import TargetSource, load_target_source
from spear_plugin.data.codes import CodeStore, CodeStoreWriter, StoredCodes
from spear_plugin.data.manifest import ManifestTable, read_manifest, rows_digest


@final
class MvqEncodeRecipe(Recipe):
    """Writes the codes of a corpus to a code store."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(MvqEncodeConfig)

        rows = read_manifest(config.corpus.manifest_path)
        source = load_target_source(config.teacher, config.quantizer, device=context.device)

        return MvqEncodeTask(context, rows, source)

    @property
    @override
    def config_kls(self) -> type[object]:
        return MvqEncodeConfig


@final
class MvqEncodeTask(ShardTask[CodeStoreWriter]):
    """Encodes the manifest."""

    def __init__(self, context: RecipeContext, rows: ManifestTable, source: TargetSource) -> None:
        config = context.get_config_as(MvqEncodeConfig)
        shards = cut_by_number(rows, config.corpus.rows_per_shard)
        super().__init__(context, shards, part=config.corpus.own_part, activity="encode")
        self._section = config.corpus
        self._teacher = source.teacher
        self._quantizer = source.quantizer
        self._identity = source.identity(manifest=rows_digest(rows))
        if (num_threads := config.common.torch.num_threads) is not None:
            # fairseq2 lets OMP_NUM_THREADS win; codes must not depend on where they were made.
            torch.set_num_threads(num_threads)

    @override
    def _open_writer(self) -> CodeStoreWriter:
        return CodeStoreWriter(
            self._folder, self._identity, len(self._shards), rows_per_shard=self._section.rows_per_shard
        )

    @override
    def _make_shard(self, writer: CodeStoreWriter, index: int, advance: Callable[[int], None]) -> None:
        rows = self._shards[index]
        codes: dict[str, StoredCodes] = {}
        failures: dict[str, str] = {}
        self._write_failures(index, {})
        num_failures = self._failures.count()

        for batch in embed_corpus(self._teacher, rows, self._section, self._gangs.root.device):
            codes |= self._encode_batch(batch)
            failures |= {utterance.row.id: utterance.problem for utterance in batch if utterance.frames is None}
            check_failures(num_failures + len(failures), self._section, self._folder)
            advance(len(batch))
            self.check_stop()

        self._write_failures(index, failures)
        ids = [row.id for row in rows if row.id in codes]
        writer.write_shard(index, ids, [codes[id_] for id_ in ids])

    def _encode_batch(self, batch: list[EmbeddedUtterance]) -> dict[str, StoredCodes]:
        frames = {utterance.row.id: utterance.frames for utterance in batch if utterance.frames is not None}
        if not frames:
            return {}

        # N x (T, D) -> (sum of T, D) -> (sum of T, K)
        codes = self._quantizer.encode(torch.cat(list(frames.values()))).cpu().numpy()
        split = np.split(codes.astype(self._identity.code_dtype), np.cumsum([len(x) for x in frames.values()])[:-1])

        return dict(zip(frames, split, strict=True))

    @override
    def _finish(self, writer: CodeStoreWriter) -> None:
        writer.finish()
        num_failures = self._failures.merge()
        store = CodeStore(self._folder)
        log.info(
            "{}: codes of {:,} of {:,} files, {} codebooks at {:g} Hz.",
            self._folder,
            len(store),
            len(self._shards.rows),
            self._identity.num_codebooks,
            self._identity.frame_rate_hz,
        )
        self._warn_of_failures(num_failures)

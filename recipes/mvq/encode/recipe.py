from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.common import EmbeddedUtterance, check_failures, embed_corpus
from recipes.mvq.encode.config import MvqEncodeConfig, QuantizerSection
from recipes.shards import ShardTask
from spear_plugin.data.codes import CodeStore, CodeStoreIdentity, CodeStoreWriter, StoredCodes
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest
from spear_plugin.quantizers import FrameQuantizer, load_quantizer, load_quantizer_config, quantizer_identity
from spear_plugin.teachers import Teacher, load_teacher


@final
class MvqEncodeRecipe(Recipe):
    """Writes the codes of a corpus to a code store."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(MvqEncodeConfig)

        rows = list(read_manifest(config.corpus.manifest_path))
        teacher = load_teacher(config.teacher, device=context.device)
        quantizer = load_matching_quantizer(config.quantizer, teacher).to(context.device)
        identity = CodeStoreIdentity(
            teacher=teacher.name,
            quantizer=quantizer_identity(quantizer),
            num_codebooks=quantizer.num_codebooks,
            codebook_size=quantizer.codebook_size,
            frame_rate_hz=teacher.frame_rate_hz,
            manifest=manifest_digest(config.corpus.manifest_path),
        )

        return MvqEncodeTask(context, rows, teacher, quantizer, identity)

    @property
    @override
    def config_kls(self) -> type[object]:
        return MvqEncodeConfig


def load_matching_quantizer(section: QuantizerSection, teacher: Teacher) -> FrameQuantizer:
    """Load the quantizer of a section.

    :raises RecipeError: If it was trained on frames of another teacher, layer or width.
    """
    assert section.path is not None  # validated
    config = load_quantizer_config(section.path)

    if config.teacher not in ("", teacher.name) or config.dim != teacher.dim:
        raise RecipeError(
            f"The quantizer {section.path} must be of teacher {teacher.name} (width {teacher.dim}), but is "
            f"of {config.teacher or 'an unnamed teacher'} (width {config.dim}). Change `teacher` or `quantizer.path`."
        )

    return load_quantizer(section.path)


@final
class MvqEncodeTask(ShardTask[CodeStoreWriter]):
    """Encodes the manifest."""

    def __init__(
        self,
        context: RecipeContext,
        rows: list[ManifestRow],
        teacher: Teacher,
        quantizer: FrameQuantizer,
        identity: CodeStoreIdentity,
    ) -> None:
        config = context.get_config_as(MvqEncodeConfig)
        size = config.corpus.rows_per_shard
        shards = [rows[start : start + size] for start in range(0, len(rows), size)]
        super().__init__(context, shards, part=config.corpus.own_part, activity="encode")
        self._section = config.corpus
        self._teacher = teacher
        self._quantizer = quantizer
        self._identity = identity
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
        num_rows = sum(len(shard) for shard in self._shards)
        log.info(
            "{}: codes of {:,} of {:,} files, {} codebooks at {:g} Hz.",
            self._folder,
            len(store),
            num_rows,
            self._identity.num_codebooks,
            self._identity.frame_rate_hz,
        )
        self._warn_of_failures(num_failures)

"""Random frames of a corpus, as a teacher sees them.

Letters: T frames of a file, B collected frames, D width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from recipes.common import EmbeddedUtterance, check_failures, embed_corpus, write_failures
from recipes.mvq.train.config import FrameCorpusSection
from recipes.mvq.train.storage import Failures, FrameBlock, FrameBlocks
from spear_plugin.data.audio import resampled_length
from spear_plugin.data.manifest import ManifestRow, ManifestTable
from spear_plugin.data.order import shuffle_by_hash
from spear_plugin.teachers import Teacher

_MAX_ROWS_AT_ONCE = 256


def collect_frames(
    teacher: Teacher,
    rows: ManifestTable,
    section: FrameCorpusSection,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    blocks: FrameBlocks,
    report: Callable[[int], None],
) -> Tensor:
    """Return frames (B, D) float16 on the CPU, B at most ``section.limit_frames(D)``.

    A sample without replacement: files are visited in the order of a hash until there are enough frames, so that only
    files whose frames are kept are embedded. Frames beside each other are of one file, and the last ones of files that
    the first ones do not come from. Everything depends on the seed and the ids alone.

    :param folder: Gets ``failed.tsv``.
    :param blocks: Where frames are kept on the way; those that are there already are not made again.
    :param report: Called with the number of frames of each file, or of a block that is there.

    :raises RecipeError: If too many files are unusable, or no frames remain.
    """
    limit = section.limit_frames(teacher.dim)
    # The one place where they lie: parts put together at the end would take the memory twice.
    frames = torch.empty(min(limit, count_available_frames(teacher, rows, section)), teacher.dim, dtype=torch.float16)
    failures: Failures = []
    num_frames = 0
    order = shuffle_by_hash(rows.id_hashes, "frames", seed)

    for index in itertools.count():
        if not order.size or num_frames == limit:
            break
        upcoming = (rows[place] for place in order[:_MAX_ROWS_AT_ONCE].tolist())
        chosen = _take_rows(teacher, upcoming, section, limit - num_frames)
        order = order[len(chosen) :]
        if (block := blocks.read(index)) is None:
            collector = _BlockCollector(teacher, section, seed=seed, device=device, folder=folder)
            block = collector.collect(chosen, limit - num_frames, num_failures=len(failures), report=report)
            blocks.write(index, block)
        else:
            report(len(block.frames))
        frames[num_frames : num_frames + len(block.frames)] = block.frames
        num_frames += len(block.frames)
        failures += block.failures

    write_failures(folder / "failed.tsv", failures)
    if num_frames == 0:
        raise RecipeError(f"{section.manifest}: no file gives frames. Check the corpus.")

    return frames[:num_frames]


def count_available_frames(teacher: Teacher, rows: ManifestTable, section: FrameCorpusSection) -> int:
    """Return how many frames could be taken at most, if all files are usable."""
    lengths = (rows.num_samples * teacher.frame_rate_hz / rows.sample_rates).astype(np.int64)

    return int(lengths.clip(max=section.max_frames_per_file).sum())


@final
class _BlockCollector:
    """Draws the frames of some files."""

    def __init__(
        self, teacher: Teacher, section: FrameCorpusSection, *, seed: int, device: torch.device, folder: Path
    ) -> None:
        self._teacher = teacher
        self._section = section
        self._seed = seed
        self._device = device
        self._folder = folder

    def collect(
        self, rows: Sequence[ManifestRow], max_frames: int, *, num_failures: int, report: Callable[[int], None]
    ) -> FrameBlock:
        """Return at most so many frames, file by file in the order of the rows."""
        drawn: dict[str, Tensor] = {}
        failures: Failures = []
        for batch in embed_corpus(self._teacher, rows, self._section, self._device):
            for utterance in batch:
                if utterance.frames is None:
                    failures.append((utterance.row.id, utterance.problem))
                    check_failures(num_failures + len(failures), self._section, self._folder)
                else:
                    drawn[utterance.row.id] = _draw(utterance, utterance.frames, self._section, self._seed)
                    report(min(len(drawn[utterance.row.id]), max_frames))

        # The order of the batches is by length; that of the collected frames must be random.
        none = torch.empty(0, self._teacher.dim, dtype=torch.float16)
        parts = [none, *(drawn[row.id] for row in rows if row.id in drawn)]

        return FrameBlock(torch.cat(parts)[:max_frames], failures)


def _take_rows(
    teacher: Teacher, rows: Iterable[ManifestRow], section: FrameCorpusSection, num_frames: int
) -> list[ManifestRow]:
    """Return the first rows that give so many frames, if all are usable; teachers are too slow for more."""
    taken = []
    for row in rows:
        if num_frames <= 0:
            break
        frames_of_row = teacher.num_frames(resampled_length(row.num_samples, row.sample_rate, teacher.sample_rate))
        num_frames -= min(frames_of_row, section.max_frames_per_file)
        taken.append(row)

    return taken


def _draw(utterance: EmbeddedUtterance, frames: Tensor, section: FrameCorpusSection, seed: int) -> Tensor:
    """(T, D) -> (at most ``max_frames_per_file``, D) float16, in the order of time."""
    generator = torch.Generator().manual_seed(_digest(seed, "frames", utterance.row.id))
    positions = torch.randperm(len(frames), generator=generator)[: section.max_frames_per_file].sort().values
    drawn = frames[positions.to(frames.device)].half().cpu()

    if not drawn.isfinite().all():
        raise RecipeError(f"{utterance.row.path}: the teacher's frames must fit into float16, but exceed its range.")

    return drawn


def _digest(seed: int, purpose: str, id_: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {id_}".encode()).digest()[:7])

"""Random frames of a corpus, as a teacher sees them.

Letters: T frames of a file, B collected frames, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from fairseq2.recipe.error import RecipeError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recipes.common import EmbeddedUtterance, check_failures, embed_corpus, write_failures
from recipes.mvq.train.config import FrameCorpusSection
from spear_plugin.data.audio import resampled_length
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.teachers import Teacher

_MAX_ROWS_AT_ONCE = 256


def collect_frames(
    teacher: Teacher,
    rows: Sequence[ManifestRow],
    section: FrameCorpusSection,
    *,
    seed: int,
    device: torch.device,
    folder: Path,
    report: Callable[[int], None],
) -> Tensor:
    """Return frames (B, D) float16 on the CPU, B at most ``section.max_frames``.

    Files are visited in a random order until there are enough frames, so frames beside each other are of one file, and
    the last ones of files that the first ones do not come from. Everything depends on the seed and the ids alone.

    :param folder: Gets ``failed.tsv``.
    :param report: Called with the number of frames of each file.

    :raises RecipeError: If too many files are unusable, or no frames remain.
    """
    parts: list[Tensor] = []
    failures: list[tuple[str, str]] = []
    num_missing = section.max_frames
    order = sorted(rows, key=lambda row: _digest(seed, "order", row.id))

    while order and num_missing > 0:
        num_rows = _count_rows(teacher, order, section, num_missing)
        block, order = order[:num_rows], order[num_rows:]
        drawn: dict[str, Tensor] = {}
        for batch in embed_corpus(teacher, block, section, device):
            for utterance in batch:
                if utterance.frames is None:
                    failures.append((utterance.row.id, utterance.problem))
                    check_failures(len(failures), section, folder)
                else:
                    drawn[utterance.row.id] = _draw(utterance, utterance.frames, section, seed)
                    report(min(len(drawn[utterance.row.id]), num_missing))

        # The order of the batches is by length; that of the collected frames must be random.
        for row in block:
            if row.id in drawn and num_missing > 0:
                parts.append(drawn[row.id][:num_missing])
                num_missing -= len(parts[-1])

    write_failures(folder / "failed.tsv", failures)
    if not parts:
        raise RecipeError(f"{section.manifest}: no file gives frames. Check the corpus.")

    return torch.cat(parts)


def read_frames(path: Path, provenance: dict[str, object]) -> Tensor | None:
    """Return the collected frames of a file, or None if there is no file.

    :raises RecipeError: If the file is damaged, or was collected otherwise.
    """
    if not path.exists():
        return None

    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("provenance", "{}"))
            frames: Tensor = file.get_tensor("frames")
    except (SafetensorError, ValueError) as ex:
        raise RecipeError(f"{path}: must hold collected frames, but is damaged ({ex}). Delete the file.") from None

    check_same_provenance(path, found, provenance)

    return frames


def write_frames(path: Path, frames: Tensor, provenance: dict[str, object]) -> None:
    """Keep collected frames, with what they depend on."""
    with atomic_file(path) as temporary:
        save_file({"frames": frames}, temporary, metadata={"provenance": json.dumps(provenance)})


def check_same_provenance(path: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    """Raise :class:`RecipeError` if a file of an earlier run comes from other settings, naming them."""
    differences = [
        f"{name}: {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value
    ]
    if differences:
        raise RecipeError(
            f"{path}: was made with other settings ({', '.join(differences)}). Choose another folder, or delete it."
        )


def _count_rows(teacher: Teacher, rows: Sequence[ManifestRow], section: FrameCorpusSection, num_frames: int) -> int:
    """Return how many of the first rows give so many frames, if all are usable; teachers are too slow for more."""
    count = 0
    while count < min(len(rows), _MAX_ROWS_AT_ONCE) and num_frames > 0:
        row = rows[count]
        frames_of_row = teacher.num_frames(resampled_length(row.num_samples, row.sample_rate, teacher.sample_rate))
        num_frames -= min(frames_of_row, section.max_frames_per_file)
        count += 1

    return count


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

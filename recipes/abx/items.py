"""What is compared: pieces of recordings around a phone, and what each moment of a recording is.

Letters: I items of a recording, M moments.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final
from urllib.parse import quote

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from recipes.abx.config import AbxConfig
from spear_plugin.data.alignments import SILENCE_PHONE, Segment, read_alignment
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow, Seconds, read_manifest

_COLUMNS: Final = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")

_MOMENT_MS: Final = 10


@final
@dataclass(frozen=True)
class Item:
    """A phone, alone or with its neighbours."""

    row: ManifestRow
    onset: Seconds
    offset: Seconds
    phone: str
    previous: str
    next: str


@final
@dataclass(frozen=True)
class PhoneCorpus:
    """Recordings with the phones in them."""

    rows: list[ManifestRow]
    """Those that have phones."""

    alignment: Mapping[str, Sequence[Segment]]
    items: list[Item]

    @property
    def num_speakers(self) -> int:
        """Speakers of the items; recordings whose speaker is not known count as one."""
        return len({item.row.speaker for item in self.items})

    @property
    def digest(self) -> str:
        """Of the items, and of what they were taken from."""
        contents = [(row.id, row.num_samples, self.alignment[row.id]) for row in self.rows]
        return hashlib.sha256(repr((contents, self.items)).encode()).hexdigest()


def read_phone_corpus(config: AbxConfig) -> PhoneCorpus:
    """Return the manifest's recordings that have phones.

    Raises:
        AlignmentFileError: If the alignment cannot be read.
        ManifestError: If a manifest cannot be read.
        RecipeError: If no recording has an item.
    """
    excluded = {row.id for path in config.corpus.exclude for row in read_manifest(path)}
    alignment = read_alignment(config.alignment_path)
    rows = [row for row in read_manifest(config.corpus.manifest_path) if row.id in alignment and row.id not in excluded]
    ignored = set(config.abx.ignored_phones)
    items = [
        item
        for row in rows
        for item in find_items(row, alignment[row.id], with_neighbours=config.abx.unit == "triphone", ignored=ignored)
    ]
    if not items:
        raise RecipeError(
            f"{config.alignment_path}: has no {config.abx.unit} in a recording of {config.corpus.manifest} that is not "
            "excluded. Their ids must be the same."
        )
    return PhoneCorpus(rows, {row.id: alignment[row.id] for row in rows}, items)


def find_items(
    row: ManifestRow, segments: Sequence[Segment], *, with_neighbours: bool, ignored: AbstractSet[str]
) -> list[Item]:
    """Return the items of a recording: each phone, but none whose neighbour is silence if they are to be part of it.

    Args:
        row: The recording.
        segments: Its phones, in time order.
        with_neighbours: Whether an item lasts from the start of the phone before it to the end of the one after it.
        ignored: Labels that count as silence.
    """
    # What precedes a recording and what follows it is silence.
    border = Segment(0.0, 0.0, SILENCE_PHONE, "")
    padded = [border, *segments, border]
    names = [SILENCE_PHONE if segment.phone in ignored else segment.phone for segment in padded]
    items = []
    for index in range(1, len(padded) - 1):
        first, last = (padded[index - 1], padded[index + 1]) if with_neighbours else (padded[index], padded[index])
        compared = names[index - 1 : index + 2] if with_neighbours else names[index : index + 1]
        if SILENCE_PHONE not in compared:
            items.append(Item(row, first.start, last.end, names[index], names[index - 1], names[index + 1]))
    return items


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write items in the format of ZeroSpeech and fastabx; blanks in ids and speakers are written as %20."""
    lines = [" ".join(_COLUMNS)]
    for item in items:
        times = f"{item.onset:.4f} {item.offset:.4f}"
        phones = f"{item.phone} {item.previous} {item.next}"
        lines.append(f"{_one_word(item.row.id)} {times} {phones} {_one_word(item.row.speaker or 'unknown')}")
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _one_word(text: str) -> str:
    return re.sub(r"[\s%\"]", lambda match: quote(match.group()), text)


def phone_moments(segments: Sequence[Segment], numbers: Mapping[str, int], duration: Seconds) -> tuple[Tensor, Tensor]:
    """Return times in seconds, float64, and numbers of the phones, int64, both (M,), every 10 ms of a recording.

    Moments are at 5, 15, 25, ... ms. A segment has those from its start up to but not at its end; those of phones
    without a number, and those beyond the ``duration``, are left out.
    """
    times, phones = [], []
    for segment in segments:
        if (number := numbers.get(segment.phone)) is None:
            continue
        # Whole milliseconds, because they must compare exactly.
        first, last = round(1000 * segment.start), min(round(1000 * segment.end), round(1000 * duration))
        start = first + (_MOMENT_MS // 2 - first) % _MOMENT_MS
        moments = range(start, last, _MOMENT_MS)
        times += [moment / 1000 for moment in moments]
        phones += [number] * len(moments)
    return torch.tensor(times, dtype=torch.float64), torch.tensor(phones, dtype=torch.int64)

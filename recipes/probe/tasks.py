"""Probe tasks: labelled moments or segments of audio files, divided into parts.

A task is a tab-separated file with the columns ``id, utterance, path, num_samples, sample_rate, label, split, start,
end`` (and ``fold``, which stands above ``split`` where it is set). With ``NAME.alignment.tsv`` beside ``NAME.tsv`` the
labels are those of the alignment (columns ``id, start, end, phone``), one item for each 20 ms of audio; otherwise each
row is an item whose label belongs to the segment from ``start`` to ``end``.

Letters: N items, C audio files.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from recipes.probe.config import ProbeSection
from spear_plugin.data.alignments import read_alignment
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import ProbeError, Split, fold_splits, subsample

PARTS: Final = ("train", "valid", "test")

_FRAME_MS: Final = 20

_COLUMNS: Final = ("id", "utterance", "path", "num_samples", "sample_rate", "label", "split", "start", "end")


@final
@dataclass(frozen=True, kw_only=True)
class Clip:
    """An audio file of a task."""

    id: str

    path: Path

    duration: Seconds


@final
@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Items with their labels; the same for all sources of features, whatever their frame rate."""

    name: str

    clips: list[Clip]

    classes: list[str]

    clip: Tensor
    """(N,) int64, index of the file."""

    start: Tensor
    """(N,) float64, seconds."""

    end: Tensor
    """(N,) float64, seconds; equal to ``start`` when the item is a moment."""

    labels: Tensor
    """(N,) int64, index of the class."""

    splits: list[Split]
    """One, or one per fold."""

    digest: str
    """Of everything above."""

    @property
    def is_framewise(self) -> bool:
        return bool((self.start == self.end).all())

    @property
    def test(self) -> Tensor:
        """Test items of all splits, in the order of the splits."""
        return torch.cat([split.test for split in self.splits])


@dataclass(frozen=True, kw_only=True)
class _Item:
    clip: Clip
    start: Seconds
    end: Seconds
    label: str
    part: str
    fold: str


def read_task(path: Path, section: ProbeSection, *, seed: int) -> ProbeTask:
    """Read a task and draw its items.

    :raises ProbeError: If a file is missing or malformed, a part is empty, or a label occurs only outside of training.
    """
    items = list(_read_items(path, set(section.ignored_labels)))

    _check(path, items)

    items = _limit_audio(items, section.max_task_minutes, seed)

    if items[0].fold == "":
        trained = {item.label for item in items if item.part == "train"}

        items = [item for item in items if item.label in trained]  # a limit may have cut a rare class

        items = _limit_items(items, section, seed)

    return _build(path.stem, items, section, seed)


def frame_labels(segments: Sequence[tuple[Seconds, Seconds, str]]) -> list[tuple[Seconds, str]]:
    """Return (time, label) for each 20 ms frame whose centre, 10, 30, 50, ... ms, lies in a segment [start, end)."""
    labels = []

    for start, end, label in segments:
        # Whole milliseconds, because centres and ends of segments coincide and must compare exactly.
        first, last = round(1000 * start), round(1000 * end)

        index = -((_FRAME_MS // 2 - first) // _FRAME_MS)  # the first centre at or after the start

        centres = range(max(index, 0) * _FRAME_MS + _FRAME_MS // 2, last, _FRAME_MS)

        labels += [(centre / 1000, label) for centre in centres]

    return labels


def _read_items(path: Path, ignored_labels: set[str]) -> Iterator[_Item]:
    alignment_path = path.with_suffix(".alignment.tsv")

    alignment = read_alignment(alignment_path) if alignment_path.exists() else None

    for number, row in _read_table(path, _COLUMNS):
        try:
            duration = int(row["num_samples"]) / int(row["sample_rate"])

            start, end = float(row["start"]), float(row["end"])
        except (ValueError, ZeroDivisionError):
            raise ProbeError(
                f"{path}, line {number}: num_samples, sample_rate, start and end must be numbers. Make the file anew."
            ) from None

        clip = Clip(id=row["utterance"], path=path.parent / row["path"], duration=duration)

        part, fold = row["split"], row.get("fold") or ""

        if alignment is None:
            yield _Item(clip=clip, start=start, end=end, label=row["label"], part=part, fold=fold)
        else:
            segments = [(segment.start, segment.end, segment.phone) for segment in alignment.get(row["id"], ())]

            for time, phone in frame_labels(segments):
                if phone not in ignored_labels and time < duration:
                    yield _Item(clip=clip, start=time, end=time, label=phone, part=part, fold=fold)


def _read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its fields."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)

            if missing := sorted(set(columns) - set(reader.fieldnames or ())):
                raise ProbeError(
                    f"{path}: a task file must have the column(s) {', '.join(missing)}. Make the file anew."
                )

            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise ProbeError(f"{path}, line {number}: must have as many fields as the header has.")

                yield number, row
    except OSError as ex:
        raise ProbeError(f"{path}: the task file cannot be read: {ex.strerror}. Make it with `recipes.corpus`.") from ex


def _check(path: Path, items: Sequence[_Item]) -> None:
    if not items:
        raise ProbeError(f"{path}: the task has no labelled items.")

    if len({item.clip.id for item in items}) < 2:
        raise ProbeError(f"{path}: a task needs at least two audio files, but has one.")

    if any(item.fold for item in items):
        return

    labels: dict[str, set[str]] = {part: set() for part in PARTS}

    for item in items:
        if item.part not in labels:
            raise ProbeError(f"{path}: `split` must be one of {', '.join(PARTS)}, but is '{item.part}'.")

        labels[item.part].add(item.label)

    for part, names in labels.items():
        if not names:
            raise ProbeError(f"{path}: the {part} split has no items. A probe needs all of {', '.join(PARTS)}.")

        if unseen := sorted(names - labels["train"]):
            raise ProbeError(
                f"{path}: label(s) {', '.join(unseen[:3])} occur in the {part} split but not in training. Move or drop "
                "them."
            )


def _limit_audio(items: list[_Item], max_minutes: float | None, seed: int) -> list[_Item]:
    """Keep the same share of the files of each part, chosen by a hash, so that tasks on the same corpus share files."""
    clips = {item.clip.id: item.clip for item in items}

    total = sum(clip.duration for clip in clips.values())

    if max_minutes is None or total <= 60 * max_minutes:
        return items

    share = 60 * max_minutes / total

    def draw(clip_id: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()[:8]) / 2**64

    kept = [item for item in items if draw(item.clip.id) < share]

    return kept if {i.part for i in kept} == {i.part for i in items} else items


def _limit_items(items: list[_Item], section: ProbeSection, seed: int) -> list[_Item]:
    limits = {"train": section.max_train_items, "valid": section.max_valid_items, "test": section.max_test_items}

    parts = [subsample(_part(items, part), limit, seed=seed) for part, limit in limits.items()]

    return [items[index] for index in torch.cat(parts).sort().values.tolist()]


def _build(name: str, items: Sequence[_Item], section: ProbeSection, seed: int) -> ProbeTask:
    clips = {item.clip.id: item.clip for item in items}

    clip_index = {clip_id: index for index, clip_id in enumerate(clips)}

    classes = sorted({item.label for item in items})

    class_index = {label: index for index, label in enumerate(classes)}

    contents = [(i.clip.id, i.start, i.end, i.label, i.part, i.fold) for i in items]

    if items[0].fold:
        folds = sorted({item.fold for item in items})

        splits = fold_splits(torch.tensor([folds.index(item.fold) for item in items]))
    else:
        train, valid, test = (_part(items, part) for part in PARTS)

        splits = [Split([(train, valid)], test)]

    return ProbeTask(
        name=name,
        clips=list(clips.values()),
        classes=classes,
        clip=torch.tensor([clip_index[item.clip.id] for item in items]),
        start=torch.tensor([item.start for item in items], dtype=torch.float64),
        end=torch.tensor([item.end for item in items], dtype=torch.float64),
        labels=torch.tensor([class_index[item.label] for item in items]),
        splits=splits,
        digest=hashlib.sha256(repr((contents, section, seed)).encode()).hexdigest()[:16],
    )


def _part(items: Sequence[_Item], part: str) -> Tensor:
    return torch.tensor([index for index, item in enumerate(items) if item.part == part], dtype=torch.int64)

"""Which items of a task file are probed, and how they are divided into parts.

Letters: N items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from recipes.probe.config import ProbeSection
from recipes.probe.task_files import Clip, Item, TaskFile
from spear_plugin.evaluation import ProbeError, Split, draw_folds, fold_splits, subsample

PARTS: Final = ("train", "valid", "test")


@final
@dataclass(frozen=True, kw_only=True)
class TaskItems:
    """The items of a task that are probed; the same for all sources of features, whatever their frame rate."""

    name: str

    clips: list[Clip]

    classes: list[str]
    """All labels, sorted."""

    items: list[Item]
    """N."""

    clip: Tensor
    """(N,) int64, index of the file."""

    start: Tensor
    """(N,) float64, seconds."""

    end: Tensor
    """(N,) float64, seconds."""

    splits: list[Split]
    """One, or one per fold of each division into folds."""

    digest: str
    """Of everything above and of how probes are fitted."""

    @property
    def test(self) -> Tensor:
        """Test items of all splits, in the order of the splits; of each division into folds, all items."""
        return torch.cat([split.test for split in self.splits])

    @property
    def num_test(self) -> int:
        """How many items are tested, however often."""
        return len(set(self.test.tolist()))

    @property
    def label_indices(self) -> Tensor:
        """(N,) int64, the class of items that have one label each."""
        index = {label: number for number, label in enumerate(self.classes)}
        return torch.tensor([index[item.labels[0]] for item in self.items])


def select_items(
    file: TaskFile,
    items: Sequence[Item],
    section: ProbeSection,
    *,
    name: str,
    seed: int,
    has_new_labels: bool = False,
    also: object = None,
) -> TaskItems:
    """Check the items of a task, and draw those that are probed.

    :param items: What the task's kind makes of the rows.
    :param has_new_labels: Whether labels may occur in the test part alone, as new speakers do in verification.
    :param also: What else the task consists of, by its ``repr``.
    :raises ProbeError: If a part is empty, or a label occurs only outside of training.
    """
    _check(file.path, items, has_new_labels=has_new_labels)

    items = _limit_audio(items, section.max_task_minutes, seed)

    if items[0].fold == "":
        trained = {label for item in items if item.part == "train" for label in item.labels}
        # A limit may have cut a rare class.
        items = [item for item in items if trained.issuperset(item.labels) or (has_new_labels and item.part == "test")]
        items = _limit_items(items, section, seed)

    return _build(name, items, section, seed, also)


def _check(path: Path, items: Sequence[Item], *, has_new_labels: bool) -> None:
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
        labels[item.part].update(item.labels)

    for part, names in labels.items():
        if not names:
            raise ProbeError(f"{path}: the {part} split has no items. A probe needs all of {', '.join(PARTS)}.")

        if (unseen := sorted(names - labels["train"])) and not (has_new_labels and part == "test"):
            raise ProbeError(
                f"{path}: label(s) {', '.join(unseen[:3])} occur in the {part} split but not in training. Move or drop "
                "them."
            )


def _limit_audio(items: Sequence[Item], max_minutes: float | None, seed: int) -> Sequence[Item]:
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


def _limit_items(items: Sequence[Item], section: ProbeSection, seed: int) -> Sequence[Item]:
    limits = {"train": section.max_train_items, "valid": section.max_valid_items, "test": section.max_test_items}

    parts = [subsample(_part(items, part), limit, seed=seed) for part, limit in limits.items()]

    return [items[index] for index in torch.cat(parts).sort().values.tolist()]


def _build(name: str, items: Sequence[Item], section: ProbeSection, seed: int, also: object) -> TaskItems:
    clips = {item.clip.id: item.clip for item in items}
    clip_index = {clip_id: index for index, clip_id in enumerate(clips)}
    clip = torch.tensor([clip_index[item.clip.id] for item in items])
    rows = [(i.id, i.clip.id, i.start, i.end, i.labels, i.part, i.fold) for i in items]

    if items[0].fold:
        splits = _fold_splits(items, clip, section.fold_repeats, seed)
    else:
        train, valid, test = (_part(items, part) for part in PARTS)
        splits = [Split([(train, valid)], test)]

    return TaskItems(
        name=name,
        clips=list(clips.values()),
        classes=sorted({label for item in items for label in item.labels}),
        items=list(items),
        clip=clip,
        start=torch.tensor([item.start for item in items], dtype=torch.float64),
        end=torch.tensor([item.end for item in items], dtype=torch.float64),
        splits=splits,
        digest=hashlib.sha256(repr((rows, section, seed, also)).encode()).hexdigest()[:16],
    )


def _fold_splits(items: Sequence[Item], clip: Tensor, num_repeats: int, seed: int) -> list[Split]:
    """Return the splits of the task's own folds, then those of folds drawn file by file."""
    names = sorted({item.fold for item in items})
    splits = fold_splits(torch.tensor([names.index(item.fold) for item in items]))

    classes = sorted({item.labels for item in items})
    labels = torch.tensor([classes.index(item.labels) for item in items])
    for repeat in range(1, num_repeats):
        # 32 bits, as `draw_folds` takes them.
        repeat_seed = int.from_bytes(hashlib.sha256(f"{seed}:{repeat}".encode()).digest()[:4])
        splits += fold_splits(draw_folds(labels, clip, num_folds=len(names), seed=repeat_seed))

    return splits


def _part(items: Sequence[Item], part: str) -> Tensor:
    return torch.tensor([index for index, item in enumerate(items) if item.part == part], dtype=torch.int64)

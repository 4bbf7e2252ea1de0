"""Manifests of a labelled task: ``python -m recipes.corpus.task_manifests OUT TASK.tsv``.

A task, as ``recipes.corpus.packaged`` writes them below ``probe/``, becomes OUT/{train,valid,test}.tsv with its texts
and labels, for fine-tuning. Its splits stay as they are, so that transcripts of the test split occur in no other.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from recipes.corpus.console import STDERR, CorpusError, run_command
from spear_plugin.data.manifest import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, ManifestRow, write_manifest

_SPLITS: Final = ("train", "valid", "test")


def main(arguments: Sequence[str]) -> None:
    """Read a task and write a manifest for each split; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.task_manifests", description="Write the splits of a task as manifests."
    )
    parser.add_argument("out", type=Path, help="folder for train.tsv, valid.tsv and test.tsv")
    parser.add_argument("task", type=Path, help="task file, such as probe/phones.tsv of recipes.corpus.packaged")
    options = parser.parse_args(arguments)

    rows: dict[str, list[ManifestRow]] = {split: [] for split in _SPLITS}
    for split, row in _read_task(options.task):
        if split not in rows:
            raise CorpusError(f"{options.task}: `split` must be one of {', '.join(_SPLITS)}, but is '{split}'.")
        rows[split].append(row)

    options.out.mkdir(parents=True, exist_ok=True)
    for split, members in rows.items():
        write_manifest(options.out / f"{split}.tsv", members)
    STDERR.print(f"{options.out}: " + ", ".join(f"{len(rows[split])} {split}" for split in _SPLITS))


def _read_task(path: Path) -> Iterator[tuple[str, ManifestRow]]:
    """Yield the split and the row of each whole file."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            needed = {*REQUIRED_COLUMNS, "split", "start", "end"}
            if missing := sorted(needed - set(reader.fieldnames or ())):
                raise CorpusError(f"{path}: a task must have the column(s) {', '.join(missing)}. Make the file anew.")
            for record in reader:
                yield record["split"], _make_row(path, record)
    except OSError as ex:
        raise CorpusError(f"{path}: cannot be read: {ex.strerror}. Make it with recipes.corpus.packaged.") from ex


def _make_row(path: Path, record: dict[str, str]) -> ManifestRow:
    row = ManifestRow(
        id=record["id"],
        path=Path(os.path.normpath(path.absolute().parent / record["path"])),
        num_samples=int(record["num_samples"]),
        sample_rate=int(record["sample_rate"]),
        domain="audio" if record["domain"] == "audio" else "speech",
        **{name: record.get(name) or "" for name in OPTIONAL_COLUMNS},
    )
    if abs(float(record["end"]) - float(record["start"]) - row.duration) > 0.01:
        raise CorpusError(f"{path}: '{row.id}' is a part of its file, and a manifest lists whole files.")
    return row


if __name__ == "__main__":
    run_command(main)

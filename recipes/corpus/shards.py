"""Pack the audio of a manifest into archives: few large files instead of millions of small ones.

    python -m recipes.corpus.shards OUT speech.tsv --format tar --shard-megabytes 512

OUT gets shard-00000.tar, ..., an index beside each, and manifest.tsv, whose paths lead into the shards. Files are
copied as they are, in the manifest's order; what a shard holds follows from the manifest and the sizes of its files. A
shard is read again after it was written. A run that is started again writes what is missing. Files that are not there
are listed in OUT/failed.tsv and left out. Ids stay, so code stores need no change. Formats: tar, zip (members are
stored, not compressed), and parquet, with the column ``audio`` of ``bytes`` and ``path``.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from recipes.corpus.console import STDERR, CorpusError, run_command
from recipes.corpus.scan import write_bad_files
from spear_plugin.data.archives import ARCHIVE_FORMATS
from spear_plugin.data.audio_shards import is_whole_shard, write_audio_shard
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.scan import BadFile


def main(arguments: Sequence[str]) -> None:
    """Write the shards and their manifest."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read_manifest(options.manifest)
    sizes, missing = _measure(rows)
    write_bad_files(options.out / "failed.tsv", missing)
    (present,) = np.nonzero(sizes >= 0)

    if not present.size:
        raise CorpusError(f"{options.manifest}: none of its files is there. Check the paths.")

    shards = list(_cut(present, sizes[present], options.shard_megabytes * 1_000_000))
    paths = [options.out / f"shard-{index:05d}.{options.format}" for index in range(len(shards))]

    for path, shard in zip(paths, track(shards, "Writing shards", console=STDERR, transient=True), strict=True):
        _write(path, rows, shard, sizes)

    write_manifest(options.out / "manifest.tsv", _list_rows(rows, paths, shards))
    print(
        f"{options.out}/manifest.tsv: {present.size} recordings in {len(shards)} shards, {len(missing)} files left out"
    )


def _measure(rows: Iterable[ManifestRow]) -> tuple[NDArray[np.int64], list[BadFile]]:
    """Return the size of each file in bytes, -1 for those that are not there."""
    sizes, missing = array("q"), []

    for row in rows:
        try:
            sizes.append(row.path.stat().st_size)
        except NotADirectoryError:
            raise CorpusError(f"{row.path}: is in a shard already. Name the manifest of the loose files.") from None
        except OSError as ex:
            sizes.append(-1)
            missing.append(BadFile(row.path, f"cannot be read: {ex.strerror}. Restore it."))

    return np.array(sizes, dtype=np.int64), missing


def _cut(indices: NDArray[np.int64], sizes: NDArray[np.int64], max_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each shard, given all rows and their sizes; a larger file has a shard of its own."""
    ends, first = np.cumsum(sizes), 0

    while first < indices.size:
        before = int(ends[first] - sizes[first])
        last = max(int(np.searchsorted(ends, before + max_size, "right")), first + 1)
        yield indices[first:last]
        first = last


def _write(path: Path, rows: Sequence[ManifestRow], shard: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    members = {_member_name(int(index), rows[int(index)]): int(index) for index in shard}

    if not is_whole_shard(path, {name: int(sizes[index]) for name, index in members.items()}):
        write_audio_shard(path, [(name, rows[index].path.read_bytes()) for name, index in members.items()])


def _list_rows(
    rows: Sequence[ManifestRow], paths: Sequence[Path], shards: Sequence[NDArray[np.int64]]
) -> Iterator[ManifestRow]:
    """Yield the rows with their paths in the shards."""
    for path, shard in zip(paths, shards, strict=True):
        for index in shard.tolist():
            yield replace(row := rows[index], path=path.absolute() / _member_name(index, row))


def _member_name(index: int, row: ManifestRow) -> str:
    return f"{index:09d}{row.path.suffix.lower()}"  # ids may hold what no file name can


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards and their manifest")
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="of the loose files")
    formats = [suffix.removeprefix(".") for suffix in ARCHIVE_FORMATS]
    parser.add_argument("--format", choices=formats, default="tar", help="of the shards (default: %(default)s)")
    parser.add_argument("--shard-megabytes", type=int, default=512, help="of a shard at most (default: %(default)s)")
    options = parser.parse_args(arguments)

    if options.shard_megabytes < 1:
        parser.error(f"--shard-megabytes must be at least 1, but is {options.shard_megabytes}")

    return options


if __name__ == "__main__":
    run_command(main)

"""Pack the audio of a manifest into archives: few large files instead of millions of small ones.

    python -m recipes.corpus.shards OUT speech.tsv --format tar --shard-megabytes 512

OUT gets shard-00000.tar, ..., an index beside each, and manifest.tsv, whose paths lead into the shards. Files are
copied as they are, in the manifest's order; what a shard holds follows from the manifest and the sizes of its files. A
shard is read again after it was written. A run that is started again writes what is missing. Files that are not there
are listed in OUT/failed.tsv and left out. Ids stay, so code stores need no change. Formats: tar, zip (members are
stored, not compressed), and parquet, with the column ``audio`` of ``bytes`` and ``path``. With --unpack-flac, 16-bit
FLAC is stored as WAV: the same samples, read several times as fast, for up to twice the space.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from recipes.corpus.console import STDERR, CorpusError, run_command
from recipes.corpus.scan import write_bad_files
from recipes.corpus.unpacking import unpack_flac, unpacked_size
from spear_plugin.data.archives import ARCHIVE_FORMATS
from spear_plugin.data.audio_shards import is_whole_shard, write_audio_shard
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.scan import BadFile


def main(arguments: Sequence[str]) -> None:
    """Write the shards and their manifest."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read_manifest(options.manifest)
    files, missing = _measure(rows, unpack=options.unpack_flac)
    write_bad_files(options.out / "failed.tsv", missing)
    (present,) = np.nonzero(files.sizes >= 0)

    if not present.size:
        raise CorpusError(f"{options.manifest}: none of its files is there. Check the paths.")

    shards = list(_cut(present, files.sizes[present], options.shard_megabytes * 1_000_000))
    paths = [options.out / f"shard-{index:05d}.{options.format}" for index in range(len(shards))]

    for path, shard in zip(paths, track(shards, "Writing shards", console=STDERR, transient=True), strict=True):
        _write(path, rows, shard, files)

    write_manifest(options.out / "manifest.tsv", _list_rows(rows, paths, shards, files))
    print(
        f"{options.out}/manifest.tsv: {present.size} recordings in {len(shards)} shards, {len(missing)} files left out"
    )


class _Files(NamedTuple):
    """What is known of the files of all rows, one entry each."""

    sizes: NDArray[np.int64]
    """In bytes, as they are stored; -1 for those that are not there."""

    unpacked: NDArray[np.bool_]
    """Whether they are FLAC to be stored as WAV."""

    def member_name(self, index: int, row: ManifestRow) -> str:
        """Return the name of a row's file in its shard; ids may hold what no file name can."""
        return f"{index:09d}{'.wav' if self.unpacked[index] else row.path.suffix.lower()}"


def _measure(rows: Iterable[ManifestRow], *, unpack: bool) -> tuple[_Files, list[BadFile]]:
    """Return what is known of the files, and those that are not there."""
    sizes, unpacked, missing = array("q"), array("b"), []

    for row in rows:
        size = None

        try:
            size = unpacked_size(row.path) if unpack and row.path.suffix.lower() == ".flac" else None
            sizes.append(row.path.stat().st_size if size is None else size)
        except NotADirectoryError:
            raise CorpusError(f"{row.path}: is in a shard already. Name the manifest of the loose files.") from None
        except OSError as ex:
            sizes.append(-1)
            missing.append(BadFile(row.path, f"cannot be read: {ex.strerror}. Restore it."))

        unpacked.append(size is not None)

    return _Files(np.array(sizes, dtype=np.int64), np.array(unpacked, dtype=np.bool_)), missing


def _cut(indices: NDArray[np.int64], sizes: NDArray[np.int64], max_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each shard, given all rows and their sizes; a larger file has a shard of its own."""
    ends, first = np.cumsum(sizes), 0

    while first < indices.size:
        before = int(ends[first] - sizes[first])
        last = max(int(np.searchsorted(ends, before + max_size, "right")), first + 1)
        yield indices[first:last]
        first = last


def _write(path: Path, rows: Sequence[ManifestRow], shard: NDArray[np.int64], files: _Files) -> None:
    members = {files.member_name(index, rows[index]): index for index in shard.tolist()}

    if not is_whole_shard(path, {name: int(files.sizes[index]) for name, index in members.items()}):
        write_audio_shard(path, [(name, _read(rows[index], files.unpacked[index])) for name, index in members.items()])


def _read(row: ManifestRow, is_unpacked: bool) -> bytes:
    return unpack_flac(row.path) if is_unpacked else row.path.read_bytes()


def _list_rows(
    rows: Sequence[ManifestRow], paths: Sequence[Path], shards: Sequence[NDArray[np.int64]], files: _Files
) -> Iterator[ManifestRow]:
    """Yield the rows with their paths in the shards."""
    for path, shard in zip(paths, shards, strict=True):
        for index in shard.tolist():
            yield replace(row := rows[index], path=path.absolute() / files.member_name(index, row))


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
    parser.add_argument("--unpack-flac", action="store_true", help="store 16-bit FLAC as WAV, which is read faster")
    parser.add_argument("--shard-megabytes", type=int, default=512, help="of a shard at most (default: %(default)s)")
    options = parser.parse_args(arguments)

    if options.shard_megabytes < 1:
        parser.error(f"--shard-megabytes must be at least 1, but is {options.shard_megabytes}")

    return options


if __name__ == "__main__":
    run_command(main)

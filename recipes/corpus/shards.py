"""Pack the audio of a manifest into uncompressed tar archives: few large files instead of millions of small ones.

    python -m recipes.corpus.shards OUT speech.tsv --shard-megabytes 512

OUT gets shard-00000.tar, ..., an index beside each, and manifest.tsv, whose paths lead into the shards. Files are
copied as they are, in the manifest's order; what a shard holds follows from the manifest and the sizes of its files. A
shard is read again after it was written. A run that is started again writes what is missing. Files that are not there
are listed in OUT/failed.tsv and left out. Ids stay, so code stores need no change.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from recipes.corpus.console import STDERR, CorpusError, run_command
from recipes.corpus.scan import write_bad_files
from spear_plugin.data.audio_shards import is_whole_shard, write_audio_shard
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.scan import BadFile


class _Member(NamedTuple):
    row: ManifestRow
    name: str
    size: int


def main(arguments: Sequence[str]) -> None:
    """Write the shards and their manifest."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    members, missing = _list_members(read_manifest(options.manifest))
    write_bad_files(options.out / "failed.tsv", missing)

    if not members:
        raise CorpusError(f"{options.manifest}: none of its files is there. Check the paths.")

    shards = list(_cut(members, options.shard_megabytes * 1_000_000))
    rows: list[ManifestRow] = []

    for index, shard in enumerate(track(shards, "Writing shards", console=STDERR, transient=True)):
        path = options.out / f"shard-{index:05d}.tar"
        _write(path, shard)
        rows.extend(replace(member.row, path=path.absolute() / member.name) for member in shard)

    write_manifest(options.out / "manifest.tsv", rows)
    print(f"{options.out}/manifest.tsv: {len(rows)} recordings in {len(shards)} shards, {len(missing)} files left out")


def _list_members(rows: Sequence[ManifestRow]) -> tuple[list[_Member], list[BadFile]]:
    members, missing = [], []

    for index, row in enumerate(rows):
        name = f"{index:09d}{row.path.suffix.lower()}"  # ids may hold what no file name can

        try:
            members.append(_Member(row, name, row.path.stat().st_size))
        except NotADirectoryError:
            raise CorpusError(f"{row.path}: is in a shard already. Name the manifest of the loose files.") from None
        except OSError as ex:
            missing.append(BadFile(row.path, f"cannot be read: {ex.strerror}. Restore it."))

    return members, missing


def _cut(members: Sequence[_Member], max_size: int) -> Iterator[list[_Member]]:
    """Yield the members of each shard; one that is larger than a shard has one of its own."""
    shard: list[_Member] = []
    size = 0

    for member in members:
        if shard and size + member.size > max_size:
            yield shard
            shard, size = [], 0

        shard.append(member)
        size += member.size

    yield shard


def _write(path: Path, members: Sequence[_Member]) -> None:
    if not is_whole_shard(path, {member.name: member.size for member in members}):
        write_audio_shard(path, [(member.name, member.row.path.read_bytes()) for member in members])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards and their manifest")
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="of the loose files")
    parser.add_argument("--shard-megabytes", type=int, default=512, help="of a shard at most (default: %(default)s)")
    options = parser.parse_args(arguments)

    if options.shard_megabytes < 1:
        parser.error(f"--shard-megabytes must be at least 1, but is {options.shard_megabytes}")

    return options


if __name__ == "__main__":
    run_command(main)

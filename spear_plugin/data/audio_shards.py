"""Audio files inside archives (tar, zip, Parquet), read at random places.

A path leads through the archive as if it were a folder: ``shards/shard-00000.tar/000000017.flac``. Beside it lies
``shard-00000.tar.index``, an npz file with a row for each member: hash of the name, place, size and CRC-32 of its
bytes. It is made by a scan when it is first missed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR
from typing import Final, final

import numpy as np
import pyarrow as pa

from spear_plugin.data.archives import ARCHIVE_FORMATS, ArchiveError, scan_archive
from spear_plugin.data.audio_error import AudioError
from spear_plugin.data.files import atomic_file
from spear_plugin.data.text_fields import Bytes, Hashes, Places, fields_equal, hash_fields, hash_text

_INSIDE: Final = re.compile("|".join(re.escape(f"{suffix}/") for suffix in ARCHIVE_FORMATS))

_INDEX_SUFFIX: Final = ".index"

_MAX_OPEN_SHARDS: Final = 128

_REMAKE: Final = "Restore the shard, or make it anew with `recipes.corpus.shards`."


def read_member(path: Path) -> bytes | None:
    """Return the bytes of a file in a shard, or None if the path does not lead through one.

    :raises AudioError: If the shard is missing, cut off or damaged, or has no such member.
    """
    text = path.as_posix()

    for inside in _INSIDE.finditer(text):
        shard = Path(text[: inside.end() - 1])

        try:
            status = shard.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise AudioError(path, "its shard is missing", _REMAKE) from None

        if not S_ISDIR(status.st_mode):
            return _open_shard(shard, status.st_size).read(path, text[inside.end() :])

    return None


def write_audio_shard(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a shard and its index atomically and compare what lies on the disk; the same members give the same bytes.

    :param path: Its suffix, one of those in ``ARCHIVE_FORMATS``, says in which format.
    :raises AudioError: If the disk gives back other bytes.
    """
    with atomic_file(path) as temporary:
        ARCHIVE_FORMATS[path.suffix].write(temporary, members)

    _index_path(path).unlink(missing_ok=True)  # of an older shard
    _open_shard.cache_clear()
    written = AudioShard(path)

    for name, content in members:
        if written.read(path / name, name) != content:
            raise AudioError(path / name, "was not written as it is", "Check the disk.")


def is_whole_shard(path: Path, sizes: Mapping[str, int]) -> bool:
    """Return whether a shard and its index are there and hold just the members of these names and sizes."""
    try:
        return _index_path(path).is_file() and AudioShard(path).has_sizes(sizes)
    except (AudioError, OSError):
        return False


def hash_shards(data: Bytes, block: bytes, starts: Places, ends: Places) -> Hashes:
    """Return a hash of the archive in each path, 0 where there is none.

    :param data: The bytes of ``block``, in which paths begin at ``starts`` and end at ``ends``, in order.
    """
    hashes = np.zeros(starts.size, dtype=np.uint64)
    markers = [marker for suffix in ARCHIVE_FORMATS if (marker := f"{suffix}/".encode()) in block]

    if not markers:
        return hashes

    places = np.sort(np.concatenate([_find_all(data, marker) for marker in markers]))
    rows: Places = np.asarray(np.searchsorted(starts, places, "right")) - 1
    inside = (rows >= 0) & (places < ends[rows])
    sharded, first = np.unique(rows[inside], return_index=True)
    hashes[sharded] = hash_fields(data, starts[sharded], places[inside][first])

    return hashes


def _find_all(data: Bytes, text: bytes) -> Places:
    """Return where the text begins in the data."""
    (ends,) = np.nonzero(data == text[-1])
    places: Places = ends[ends >= len(text)] - len(text) + 1

    return places[fields_equal(data, places, places + len(text), text)]


@final
class AudioShard:
    """One archive. Several threads may read at the same time; 28 bytes of a member stay in memory."""

    def __init__(self, path: Path) -> None:
        """Open a shard, and make its index if there is none.

        :raises AudioError: If it is cut off, damaged or not the one that the index was made for.
        """
        self._path = path
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        index = _index_path(path)

        try:
            with np.load(index, allow_pickle=False) as arrays:
                size, self._names = int(arrays["shard_size"]), arrays["names"]
                self._places, self._sizes, self._checksums = (arrays[key] for key in ("places", "sizes", "checksums"))
        except FileNotFoundError:
            self._scan()
        except Exception as ex:  # whatever zip and npy readers make of damaged bytes
            raise AudioError(index, "the index is damaged", "Delete it; it is made again.") from ex
        else:
            if size != self._size:
                raise AudioError(
                    path,
                    f"the shard has {self._size} bytes, but its index was made for {size}: cut off, or another one",
                    f"{_REMAKE} If it is right, delete {index.name}.",
                )

    def __len__(self) -> int:
        return len(self._sizes)

    def has_sizes(self, sizes: Mapping[str, int]) -> bool:
        """Return whether the members are these, by name and size in bytes."""
        wanted = sorted((hash_text(name), size) for name, size in sizes.items())

        return wanted == list(zip(self._names, self._sizes, strict=True))

    def read(self, path: Path, name: str) -> bytes:
        """Return the bytes of a member; ``path`` is for messages.

        :raises AudioError: If there is no such member or its bytes have changed.
        """
        wanted = hash_text(name)
        row = int(np.searchsorted(self._names, wanted))

        if row == len(self) or self._names[row] != wanted:
            raise AudioError(path, "the shard has no such member", "Make the manifest anew.")

        content = bytes(self._file.read_at(int(self._sizes[row]), int(self._places[row])))

        if zlib.crc32(content) != self._checksums[row]:
            raise AudioError(path, "its bytes in the shard have changed since the index was made", _REMAKE)

        return content

    def _scan(self) -> None:
        try:
            members = {member.path: member for member in scan_archive(self._path)}
        except ArchiveError as ex:
            raise AudioError(self._path, str(ex), _REMAKE) from ex

        # Of members of one name the last counts, as where an archive is unpacked.
        rows = [(hash_text(name), *member[1:]) for name, member in members.items()]
        rows.sort()
        names, places, sizes, checksums = zip(*rows, strict=True) if rows else ((), (), (), ())
        self._names, self._places = np.array(names, dtype=np.uint64), np.array(places, dtype=np.int64)
        self._sizes, self._checksums = np.array(sizes, dtype=np.int64), np.array(checksums, dtype=np.uint32)
        self._write_index()

    def _write_index(self) -> None:
        arrays = {
            "shard_size": np.int64(self._size),
            "names": self._names,
            "places": self._places,
            "sizes": self._sizes,
            "checksums": self._checksums,
        }

        try:
            with atomic_file(_index_path(self._path)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)
        except OSError:  # no right to write, or no room: then the next process scans it again
            return


# The size is part of the key: a shard of another size is opened again.
@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open_shard(path: Path, size: int) -> AudioShard:
    return AudioShard(path)


def _index_path(path: Path) -> Path:
    return path.with_name(path.name + _INDEX_SUFFIX)

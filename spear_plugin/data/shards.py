"""The shard files of a code store and the index of their ids.

A shard is an Arrow IPC file of one record batch with the columns id and codes (T * K codes of one or two bytes, frames
first). The schema's metadata hold the store's identity and the SHA-256 of the columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file
from spear_plugin.data.text_fields import Hashes, hash_fields, hash_text

_SCHEMA: Final = pa.schema(
    [pa.field("id", pa.large_string(), nullable=False), pa.field("codes", pa.large_binary(), nullable=False)]
)

REMAKE: Final = "Delete the file and encode again: the recipe writes only what is missing."


MAX_CODEBOOK_SIZE: Final = 32_768
"""Batches of codes are int16, since they hold negative padding."""

StoredCodes: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Codes (T, K) as they are stored, see :attr:`CodeStoreIdentity.code_dtype`."""


class CodeStoreError(ValueError):
    """Raised when a code store cannot be used; the message names the file and the remedy."""


@final
@dataclass(frozen=True, kw_only=True)
class CodeStoreIdentity:
    """Where codes come from. Codes of different identities must never meet in one target stream."""

    teacher: str
    """Name and layer of the teacher, e.g. ``whisper_tiny_en:3``."""

    quantizer: str
    """Content hash of the quantizer's weights."""

    num_codebooks: int
    """K, codes per frame."""

    codebook_size: int
    """Codes are below it; at most 32,768."""

    frame_rate_hz: float
    """Frames per second of audio."""

    manifest: str
    """Digest of the encoded manifest."""

    @property
    def code_dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """A byte for each code while that is enough, else two, the lower one first."""
        return np.dtype(np.uint8) if self.codebook_size <= 256 else np.dtype("<u2")

    def difference(self, other: CodeStoreIdentity, *, ignore: Sequence[str] = ()) -> str:
        """Return ``field: mine, not theirs`` for each field that differs, empty if none does."""
        mine, theirs = asdict(self), asdict(other)

        return ", ".join(
            f"{name}: {mine[name]}, not {theirs[name]}"
            for name in mine
            if name not in ignore and mine[name] != theirs[name]
        )


@final
class Shard:
    """One memory-mapped shard file."""

    def __init__(self, path: Path, identity: CodeStoreIdentity) -> None:
        self.path = path

        try:
            self._batch: pa.RecordBatch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)

            # Without this, Arrow follows damaged offsets out of the mapped memory. Leaves the code bytes untouched.
            self._batch.validate(full=True)
            metadata = self._batch.schema.metadata

            if not self._batch.schema.equals(_SCHEMA):
                raise ValueError("unknown columns")

            found = CodeStoreIdentity(**json.loads(metadata[b"identity"]))
            self.checksum = metadata[b"checksum"].decode()
        except FileNotFoundError as ex:
            raise CodeStoreError(f"{path}: the shard is missing. Encode again: only missing shards are made.") from ex
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as ex:
            raise CodeStoreError(f"{path}: the shard is cut off or damaged. {REMAKE}") from ex

        if found != identity:
            raise CodeStoreError(f"{path}: is of another store ({found.difference(identity)}). {REMAKE}")

        self._code_dtype = identity.code_dtype
        self._num_codebooks = identity.num_codebooks
        # Views of the file, made once: Arrow's own access takes a hundred times as long as reading a row.
        self._id_ends, self._ids = _view_column(self._batch.column("id"))
        self._code_ends, self._codes = _view_column(self._batch.column("codes"))
        self._verified = False
        self._lock = Lock()

    def ids(self) -> list[str]:
        ids: list[str] = self._batch.column("id").to_pylist()

        return ids

    def id_hashes(self) -> Hashes:
        """Return a hash of each id, see :func:`spear_plugin.data.text_fields.hash_fields`."""
        return hash_fields(np.frombuffer(self._ids, dtype=np.uint8), self._id_ends[:-1], self._id_ends[1:])

    def id(self, row: int) -> str:
        return str(self._ids[self._id_ends[row] : self._id_ends[row + 1]], "utf-8")

    def codes(self, row: int) -> StoredCodes:
        """Return the codes (T, K) of a row as a read-only view of the file."""
        self.verify()

        return self._view(self._codes[self._code_ends[row] : self._code_ends[row + 1]])

    def all_codes(self) -> StoredCodes:
        """Return the codes (T, K) of all rows, one behind the other."""
        self.verify()

        return self._view(self._codes[: self._code_ends[-1]])

    def num_frames(self) -> NDArray[np.int64]:
        """Return the number of frames of each row."""
        self.verify()

        return np.diff(self._code_ends) // (self._num_codebooks * self._code_dtype.itemsize)

    def _view(self, buffer: memoryview) -> StoredCodes:
        return np.frombuffer(buffer, dtype=self._code_dtype).reshape(-1, self._num_codebooks)

    def verify(self) -> None:
        """Compare the columns with the checksum, once."""
        if not self._verified:
            with self._lock:
                self._verify()

    def _verify(self) -> None:
        if self._verified:  # meanwhile, by another thread
            return

        if _checksum(self._batch) != self.checksum:
            raise CodeStoreError(f"{self.path}: the shard is damaged: its checksum does not match. {REMAKE}")

        self._verified = True


def _view_column(column: pa.Array) -> tuple[NDArray[np.int64], memoryview]:
    """Return 0 and where each row ends, and the bytes of all rows."""
    _, offsets, data = column.buffers()

    return np.frombuffer(offsets, dtype=np.int64, count=len(column) + 1), memoryview(b"" if data is None else data)


@final
class IdIndex:
    """Finds ids by binary search over their hashes: 12 bytes per id, where a dictionary needs about 150.

    The ids themselves stay in the memory-mapped shards and are compared there, so equal hashes do no harm.
    """

    def __init__(self, folder: Path, shards: list[Shard]) -> None:
        self._shards = shards
        hashes = [shard.id_hashes() for shard in shards]
        self._starts = np.cumsum([0, *(part.size for part in hashes)])
        hashed = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
        self._order = np.argsort(hashed, kind="stable").astype(np.uint32)
        self._hashes = hashed[self._order]
        self._check_unique(folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, id_: str) -> tuple[int, int] | None:
        """Return the shard and the row of an id."""
        return next((place for place, found in self._candidates(hash_text(id_)) if found == id_), None)

    def has(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which hashes are those of an id.

        Ids are not compared: among 40 million, one in 10,000 corpora holds an id wrongly taken for another.
        """
        order = np.argsort(hashes)  # a search in order stays in the processor's caches
        places = np.searchsorted(self._hashes, hashes[order]).clip(max=max(len(self) - 1, 0))
        found = np.zeros(hashes.size, dtype=np.bool_)

        if len(self):
            found[order] = self._hashes[places] == hashes[order]

        return found

    def _candidates(self, id_hash: np.uint64) -> Iterator[tuple[tuple[int, int], str]]:
        place = int(self._hashes.searchsorted(id_hash))

        while place < len(self) and self._hashes[place] == id_hash:
            position = int(self._order[place])
            shard = int(self._starts.searchsorted(position, "right")) - 1
            row = position - int(self._starts[shard])
            yield (shard, row), self._shards[shard].id(row)
            place += 1

    def _check_unique(self, folder: Path) -> None:
        for id_hash in self._hashes[1:][self._hashes[1:] == self._hashes[:-1]]:
            ids = [id_ for _, id_ in self._candidates(id_hash)]

            if len(set(ids)) < len(ids):
                raise CodeStoreError(f"{folder}: the id '{ids[0]}' occurs twice. Delete the folder and encode again.")


def write_shard(path: Path, identity: CodeStoreIdentity, ids: Sequence[str], codes: Sequence[StoredCodes]) -> None:
    """Write a shard atomically."""
    columns = [pa.array(ids, _SCHEMA[0].type), pa.array([array.tobytes() for array in codes], _SCHEMA[1].type)]
    batch = pa.record_batch(columns, schema=_SCHEMA)
    batch = batch.replace_schema_metadata({"identity": json.dumps(asdict(identity)), "checksum": _checksum(batch)})

    with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def _checksum(batch: pa.RecordBatch) -> str:
    """Return the SHA-256 of ids and codes as they lie in memory: offsets and bytes of each column."""
    digest = hashlib.sha256()

    for column in batch.columns:
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64, count=len(column) + 1)
        digest.update(ends)

        if data is not None:
            digest.update(memoryview(data)[: ends[-1]])

    return digest.hexdigest()

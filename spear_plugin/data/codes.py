"""The code store: teacher codes of a corpus on disk, read back by example id.

A store is a folder::

    store.json           identity and number of shards; written first
    shard-00000.arrow    Arrow IPC file, one record batch with the columns id and codes (T * K bytes, frames first)
    ...
    complete.json        checksum of every shard; written last, by :meth:`CodeStoreWriter.finish`

Each shard carries the identity and the SHA-256 of its columns in its schema's metadata, therefore a copied, cut off or
altered shard is found. Which rows go into which shard depends on the manifest alone, so any number of workers writes
the same bytes and each shard can be written, or written again, by itself.

Letters: T frames, K codebooks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file

STORE_FILE: Final = "store.json"
COMPLETE_FILE: Final = "complete.json"

_SCHEMA: Final = pa.schema(
    [pa.field("id", pa.large_string(), nullable=False), pa.field("codes", pa.large_binary(), nullable=False)]
)

_REMAKE: Final = "Delete the file and encode again: the recipe writes only what is missing."


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
    """K, bytes per frame."""

    codebook_size: int
    """Codes are below it; at most 256."""

    frame_rate_hz: float
    """Frames per second of audio."""

    manifest: str
    """Digest of the encoded manifest."""

    def difference(self, other: CodeStoreIdentity, *, ignore: Sequence[str] = ()) -> str:
        """Return ``field: mine, not theirs`` for each field that differs, empty if none does."""
        mine, theirs = asdict(self), asdict(other)

        return ", ".join(
            f"{name}: {mine[name]}, not {theirs[name]}"
            for name in mine
            if name not in ignore and mine[name] != theirs[name]
        )


@final
class CodeStoreWriter:
    """Writes a store shard by shard; several processes may write different shards of one folder at the same time."""

    def __init__(
        self, folder: Path, identity: CodeStoreIdentity, num_shards: int, *, rows_per_shard: int | None = None
    ) -> None:
        """Start a store, or go on with one of the same identity.

        :param rows_per_shard: Recorded, so that a run that cuts the manifest into other blocks cannot go on here.
        :raises CodeStoreError: If the folder holds a store of another identity or with other shards.
        """
        self.folder = folder
        self.identity = identity
        self.num_shards = num_shards

        header = {"identity": asdict(identity), "num_shards": num_shards, "rows_per_shard": rows_per_shard}

        if (folder / STORE_FILE).exists():
            _check_same_header(folder, header)
        else:
            folder.mkdir(parents=True, exist_ok=True)

            _write_json(folder / STORE_FILE, header)

    def has_shard(self, index: int) -> bool:
        """Return whether the shard is there, whole and of this store's identity."""
        path = _shard_path(self.folder, index)

        if not path.exists():
            return False

        try:
            _Shard(path, self.identity).verify()
        except CodeStoreError:
            return False

        return True

    def write_shard(self, index: int, ids: Sequence[str], codes: Sequence[NDArray[np.uint8]]) -> None:
        """Write one shard atomically.

        :param codes: One array (T, K) of codes below ``codebook_size`` for each id.
        :raises ValueError: If a shape, type or code does not fit the identity.
        """
        for id_, array in zip(ids, codes, strict=True):
            self._check_codes(id_, array)

        batch = pa.record_batch([pa.array(ids, _SCHEMA[0].type), _binary_column(codes)], schema=_SCHEMA)

        metadata = {"identity": json.dumps(asdict(self.identity)), "checksum": _checksum(batch)}

        batch = batch.replace_schema_metadata(metadata)

        with (
            atomic_file(_shard_path(self.folder, index)) as temporary,
            pa.ipc.new_file(str(temporary), batch.schema) as writer,
        ):
            writer.write_batch(batch)

    def finish(self) -> None:
        """Check that every shard is there and whole, and mark the store as complete.

        :raises CodeStoreError: If a shard is missing or damaged, or an id occurs twice.
        """
        shards = [_Shard(_shard_path(self.folder, index), self.identity) for index in range(self.num_shards)]

        for shard in shards:
            shard.verify()

        _IdIndex(self.folder, shards)

        _write_json(self.folder / COMPLETE_FILE, {"shards": {shard.path.name: shard.checksum for shard in shards}})

    def _check_codes(self, id_: str, codes: NDArray[np.uint8]) -> None:
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != self.identity.num_codebooks:
            raise ValueError(
                f"`codes` of '{id_}' must be uint8 of shape (T, {self.identity.num_codebooks}), but is {codes.dtype} "
                f"of shape {codes.shape}."
            )

        if codes.size and np.max(codes) >= self.identity.codebook_size:
            raise ValueError(
                f"`codes` of '{id_}' must be below the codebook size {self.identity.codebook_size}, but the largest is "
                f"{np.max(codes)}."
            )


@final
class CodeStore:
    """Reads a finished store. Shards are memory-mapped; each is checked in full when it is first touched.

    Instances may be used by several threads at once.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store and index its ids.

        :raises CodeStoreError: If there is no store, it is unfinished, or a shard is missing, unreadable, of another
            identity or not the one the store was finished with.
        """
        self.folder = folder

        header = _read_json(folder / STORE_FILE, "Make the store with the recipe `recipes.mvq.encode`.")

        complete = _read_json(
            folder / COMPLETE_FILE, "The store is unfinished: start the same encode command again, it goes on."
        )

        self.identity = CodeStoreIdentity(**header["identity"])

        self._shards = [_Shard(_shard_path(folder, index), self.identity) for index in range(header["num_shards"])]

        for shard in self._shards:
            if shard.checksum != complete["shards"].get(shard.path.name):
                raise CodeStoreError(f"{shard.path}: is not the shard that the store was finished with. {_REMAKE}")

        self._index = _IdIndex(folder, self._shards)

    def __contains__(self, id_: object) -> bool:
        return isinstance(id_, str) and self._index.find(id_) is not None

    def __getitem__(self, id_: str) -> NDArray[np.uint8]:
        """Return the codes (T, K) of an example as a read-only view of the file.

        :raises CodeStoreError: If the id is unknown or the shard is damaged.
        """
        if (place := self._index.find(id_)) is None:
            raise CodeStoreError(f"{self.folder}: has no codes for '{id_}'. Encode the manifest that holds this id.")

        shard, row = self._shards[place[0]], place[1]

        return shard.codes(row).reshape(-1, self.identity.num_codebooks)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CodeStore, (self.folder,))

    def verify(self) -> None:
        """Check all shards in full.

        :raises CodeStoreError: If one is damaged.
        """
        for shard in self._shards:
            shard.verify()

    def ids(self) -> list[str]:
        """Return the ids in the order of the encoded manifest."""
        return [id_ for shard in self._shards for id_ in shard.ids()]


@final
class _Shard:
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
            raise CodeStoreError(f"{path}: the shard is cut off or damaged. {_REMAKE}") from ex

        if found != identity:
            raise CodeStoreError(f"{path}: is of another store ({found.difference(identity)}). {_REMAKE}")

        self._verified = False

        self._lock = Lock()

    def ids(self) -> list[str]:
        ids: list[str] = self._batch.column("id").to_pylist()

        return ids

    def id(self, row: int) -> str:
        return str(self._batch.column("id")[row].as_py())

    def codes(self, row: int) -> NDArray[np.uint8]:
        self.verify()

        return np.frombuffer(self._batch.column("codes")[row].as_buffer(), dtype=np.uint8)

    def verify(self) -> None:
        """Compare the columns with the checksum, once."""
        with self._lock:
            if self._verified:
                return

            if _checksum(self._batch) != self.checksum:
                raise CodeStoreError(f"{self.path}: the shard is damaged: its checksum does not match. {_REMAKE}")

            self._verified = True


@final
class _IdIndex:
    """Finds ids by binary search over their hashes: 12 bytes per id, where a dictionary needs about 150.

    The ids themselves stay in the memory-mapped shards and are compared there, so equal hashes do no harm.
    """

    def __init__(self, folder: Path, shards: list[_Shard]) -> None:
        self._shards = shards

        hashes = [np.array([hash(id_) for id_ in shard.ids()], dtype=np.int64) for shard in shards]

        self._starts = np.cumsum([0, *(part.size for part in hashes)])

        hashed = np.concatenate([np.empty(0, dtype=np.int64), *hashes])

        self._order = np.argsort(hashed, kind="stable").astype(np.uint32)

        self._hashes = hashed[self._order]

        self._check_unique(folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, id_: str) -> tuple[int, int] | None:
        """Return the shard and the row of an id."""
        return next((place for place, found in self._candidates(hash(id_)) if found == id_), None)

    def _candidates(self, id_hash: int) -> Iterator[tuple[tuple[int, int], str]]:
        first, last = (int(np.searchsorted(self._hashes, id_hash, side)) for side in ("left", "right"))

        for position in self._order[first:last]:
            shard = int(np.searchsorted(self._starts, position, "right")) - 1

            row = int(position - self._starts[shard])

            yield (shard, row), self._shards[shard].id(row)

    def _check_unique(self, folder: Path) -> None:
        for id_hash in self._hashes[1:][self._hashes[1:] == self._hashes[:-1]]:
            ids = [id_ for _, id_ in self._candidates(int(id_hash))]

            if len(set(ids)) < len(ids):
                raise CodeStoreError(f"{folder}: the id '{ids[0]}' occurs twice. Delete the folder and encode again.")


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.arrow"


def _binary_column(codes: Sequence[NDArray[np.uint8]]) -> pa.Array:
    return pa.array([array.tobytes() for array in codes], _SCHEMA[1].type)


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


def _check_same_header(folder: Path, header: dict[str, Any]) -> None:
    found = _read_json(folder / STORE_FILE, "Delete the folder and encode again.")

    if found != header:
        wanted, existing = ({**entry["identity"], **entry} for entry in (header, found))

        problem = ", ".join(
            f"{name}: {existing.get(name)}, not {value}"
            for name, value in wanted.items()
            if name != "identity" and existing.get(name) != value
        )

        raise CodeStoreError(
            f"{folder}: holds codes of another encoding ({problem}). Choose another folder, or delete this one."
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as ex:
        raise CodeStoreError(f"{path}: there is no such file. {remedy}") from ex
    except (OSError, ValueError) as ex:
        raise CodeStoreError(f"{path}: cannot be read ({ex}). {remedy}") from ex

    assert isinstance(value, dict)

    return value

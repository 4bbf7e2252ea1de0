"""The code store: teacher codes of a corpus on disk, read back by example id.

A store is a folder::

    store.json           identity and number of shards; written first
    shard-00000.arrow    Arrow IPC file, one record batch with the columns id and codes (T * K, frames first)
    ...
    complete.json        checksum of every shard; written last, by :meth:`CodeStoreWriter.finish`

Each shard carries the identity and the SHA-256 of its columns in its schema's metadata, therefore a copied, cut off or
altered shard is found. Which rows go into which shard depends on the manifest alone, so any number of workers writes
the same bytes and each shard can be written, or written again, by itself.

Letters: T frames, K codebooks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file
from spear_plugin.data.shards import (
    MAX_CODEBOOK_SIZE,
    REMAKE,
    CodeStoreError,
    CodeStoreIdentity,
    IdIndex,
    Shard,
    StoredCodes,
    write_shard,
)
from spear_plugin.data.text_fields import Hashes

__all__ = ["CodeStore", "CodeStoreError", "CodeStoreIdentity", "CodeStoreWriter", "StoredCodes"]

STORE_FILE: Final = "store.json"
COMPLETE_FILE: Final = "complete.json"


@final
class CodeStoreWriter:
    """Writes a store shard by shard; several processes may write different shards of one folder at the same time."""

    def __init__(
        self, folder: Path, identity: CodeStoreIdentity, num_shards: int, *, rows_per_shard: int | None = None
    ) -> None:
        """Start a store, or go on with one of the same identity.

        :param rows_per_shard: Recorded, so that a run that cuts the manifest into other blocks cannot go on here.
        :raises CodeStoreError: If the folder holds a store of another identity or with other shards.
        :raises ValueError: If codes of the identity's codebooks cannot be stored.
        """
        if identity.codebook_size > MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"`codebook_size` must be at most {MAX_CODEBOOK_SIZE} in a store, but is {identity.codebook_size}."
            )

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
            Shard(path, self.identity).verify()
        except CodeStoreError:
            return False

        return True

    def write_shard(self, index: int, ids: Sequence[str], codes: Sequence[StoredCodes]) -> None:
        """Write one shard atomically.

        :param codes: One array (T, K) of codes below ``codebook_size`` for each id, of the identity's ``code_dtype``.
        :raises ValueError: If a shape, type or code does not fit the identity.
        """
        for id_, array in zip(ids, codes, strict=True):
            self._check_codes(id_, array)

        write_shard(_shard_path(self.folder, index), self.identity, ids, codes)

    def finish(self) -> None:
        """Check that every shard is there and whole, and mark the store as complete.

        :raises CodeStoreError: If a shard is missing or damaged, or an id occurs twice.
        """
        shards = [Shard(_shard_path(self.folder, index), self.identity) for index in range(self.num_shards)]

        for shard in shards:
            shard.verify()

        IdIndex(self.folder, shards)

        for leftover in self.folder.rglob(".*.tmp"):  # of workers that were killed
            leftover.unlink(missing_ok=True)

        _write_json(self.folder / COMPLETE_FILE, {"shards": {shard.path.name: shard.checksum for shard in shards}})

    def is_finished(self) -> bool:
        """Return whether the store is marked as complete with the shards that are there."""
        try:
            CodeStore(self.folder)
        except CodeStoreError:
            return False

        return True

    def _check_codes(self, id_: str, codes: StoredCodes) -> None:
        dtype = self.identity.code_dtype

        if codes.dtype != dtype or codes.ndim != 2 or codes.shape[1] != self.identity.num_codebooks:
            raise ValueError(
                f"`codes` of '{id_}' must be {dtype} of shape (T, {self.identity.num_codebooks}), but is {codes.dtype} "
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
        self.identity, checksums = read_header(folder)
        self._shards = [open_shard(path, self.identity, checksum) for path, checksum in checksums.items()]
        self._index = IdIndex(folder, self._shards)

    def __contains__(self, id_: object) -> bool:
        return isinstance(id_, str) and self._index.find(id_) is not None

    def has_hashes(self, id_hashes: Hashes) -> NDArray[np.bool_]:
        """Return of which ids, given by hashes, there are codes; see :meth:`IdIndex.has`."""
        return self._index.has(id_hashes)

    def __getitem__(self, id_: str) -> StoredCodes:
        """Return the codes (T, K) of an example as a read-only view of the file.

        :raises CodeStoreError: If the id is unknown or the shard is damaged.
        """
        if (place := self._index.find(id_)) is None:
            raise CodeStoreError(f"{self.folder}: has no codes for '{id_}'. Encode the manifest that holds this id.")

        return self._shards[place[0]].codes(place[1])

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


def read_header(folder: Path) -> tuple[CodeStoreIdentity, dict[Path, str]]:
    """Return the identity of a finished store and the checksums of its shards, in their order.

    :raises CodeStoreError: If there is no store, or it is unfinished.
    """
    header = _read_json(folder / STORE_FILE, "Make the store with the recipe `recipes.mvq.encode`.")
    complete = _read_json(
        folder / COMPLETE_FILE, "The store is unfinished: start the same encode command again, it goes on."
    )

    try:
        paths = [_shard_path(folder, index) for index in range(int(header["num_shards"]))]

        return CodeStoreIdentity(**header["identity"]), {path: str(complete["shards"].get(path.name)) for path in paths}
    except (AttributeError, KeyError, TypeError, ValueError) as ex:
        raise CodeStoreError(f"{folder}: its JSON files are damaged ({ex!r}). Delete it and encode again.") from ex


def open_shard(path: Path, identity: CodeStoreIdentity, checksum: str) -> Shard:
    """Open a shard of a finished store.

    :raises CodeStoreError: If it is missing, unreadable, of another identity or not the one of that checksum.
    """
    shard = Shard(path, identity)

    if shard.checksum != checksum:
        raise CodeStoreError(f"{path}: is not the shard that the store was finished with. {REMAKE}")

    return shard


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.arrow"


def _check_same_header(folder: Path, header: dict[str, Any]) -> None:
    found = _read_json(folder / STORE_FILE, "Delete the folder and encode again.")

    if found != header:
        wanted, existing = ({**entry.pop("identity", {}), **entry} for entry in (dict(header), dict(found)))
        differing = [name for name, value in wanted.items() if existing.get(name) != value]
        problem = ", ".join(f"{name}: {existing.get(name)}, not {wanted[name]}" for name in differing)
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

    if not isinstance(value, dict):
        raise CodeStoreError(f"{path}: must hold a JSON object, but does not. {remedy}")

    return value

"""Writes the feature store that :mod:`spear_plugin.data.features` describes and reads.

Letters: L layers, T frames, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import final
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spear_plugin.data.features import (
    INDEX_COLUMNS,
    INDEX_FILE,
    META_FILE,
    FeatureStoreError,
    FeatureStoreMeta,
    read_index,
    read_meta,
)
from spear_plugin.data.files import atomic_file


@final
@dataclass(frozen=True)
class StoredFeatures:
    """What is written for an id."""

    values: Tensor
    """(L, T, D), without T if pooled over time, without L for ``last``."""

    num_frames: int
    """T."""


@final
class FeatureStoreWriter:
    """Writes a store shard by shard; several processes may write different shards of one folder at the same time."""

    def __init__(self, folder: Path, meta: FeatureStoreMeta, ids: Iterable[str]) -> None:
        """Start a store, or go on with one of the same features.

        :param ids: Of all shards; looked at only where they name files.
        :raises FeatureStoreError: If the folder holds other features, or an id cannot name a file where it has to.
        """
        self._folder = folder
        self._meta = meta
        if meta.file_format == "npz":
            _check_file_names(ids)
        path = folder / META_FILE
        if path.exists():
            _check_same_meta(path, meta)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")

    def has_shard(self, index: int) -> bool:
        """Return whether the shard is there and its files can be opened."""
        try:
            entries = list(read_index(self._part_path(index)))
            for file in {file for _, file, _ in entries}:
                expected = {id_ for id_, other, _ in entries if other == file}
                if not _file_ids(self._folder / file, expected) >= expected:
                    return False
        except (FeatureStoreError, OSError, SafetensorError, ValueError, BadZipFile):
            return False
        return True

    def write_shard(self, index: int, features: Mapping[str, StoredFeatures]) -> None:
        """Write the features of a shard by id, each file atomically, then the list that makes them count."""
        if self._meta.file_format == "npz":
            files = {id_: f"features/{id_}.npz" for id_ in features}
            for id_, file in files.items():
                _write_npz(self._folder / file, features[id_].values)
        else:
            name = f"{_shard_name(index)}.safetensors"
            files = dict.fromkeys(features, name)
            if features:
                with atomic_file(self._folder / name) as temporary:
                    save_file({id_: stored.values for id_, stored in features.items()}, temporary)

        path = self._part_path(index)
        path.parent.mkdir(exist_ok=True)
        _write_index(path, [(id_, files[id_], stored.num_frames) for id_, stored in features.items()])

    def finish(self) -> int:
        """Write the index of all shards and return the number of its ids.

        :raises FeatureStoreError: If a shard is missing.
        """
        entries = self._entries()
        _write_index(self._folder / INDEX_FILE, entries)
        for leftover in self._folder.rglob(".*.tmp"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        return len(entries)

    def is_finished(self) -> bool:
        """Return whether the index of all shards is there and is theirs."""
        try:
            return list(read_index(self._folder / INDEX_FILE)) == self._entries()
        except FeatureStoreError:
            return False

    def _entries(self) -> list[tuple[str, str, int]]:
        return [entry for index in range(self._meta.num_shards) for entry in read_index(self._part_path(index))]

    def _part_path(self, index: int) -> Path:
        return self._folder / "index" / f"{_shard_name(index)}.tsv"


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}"


def _file_ids(path: Path, expected: set[str]) -> set[str]:
    """Return the ids in a file; opening one that is cut off fails."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return expected if "features" in arrays.files else set()
    with safe_open(path, framework="pt") as tensors:
        return set(tensors.keys())


def _write_npz(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, features=values.numpy())


def _write_index(path: Path, entries: Sequence[tuple[str, str, int]]) -> None:
    lines = [INDEX_COLUMNS, *(f"{id_}\t{file}\t{frames}" for id_, file, frames in entries)]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _check_same_meta(path: Path, meta: FeatureStoreMeta) -> None:
    found, wanted = asdict(read_meta(path)), asdict(meta)
    if problem := ", ".join(f"{key}: {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]):
        raise FeatureStoreError(
            f"{path.parent}: holds features of another extraction ({problem}). Choose another folder, or delete it."
        )


def _check_file_names(ids: Iterable[str]) -> None:
    for id_ in ids:
        parts = PurePosixPath(id_).parts
        if id_ != "/".join(parts) or ".." in parts or id_.startswith("/"):
            raise FeatureStoreError(f"The id '{id_}' cannot be the name of a file. Use `output.format: safetensors`.")

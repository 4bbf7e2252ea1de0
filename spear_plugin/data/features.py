"""The feature store: features of audio files on disk, read back by id.

A store is a folder::

    meta.json                     what the features are; written first
    shard-00000.safetensors ...   one tensor for each id; or features/ID.npz, one file for each id
    index/shard-00000.tsv ...     ids of each shard; written after its tensors, so that a shard is there whole or not
    index.tsv                     all ids with file and number of frames; written last

Which files are in which shard follows from the manifest alone: any number of processes writes the same shards, and each
can be written, or written again, by itself.

Letters: L layers, T frames, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spear_plugin.data.manifest import Seconds

META_FILE: Final = "meta.json"
INDEX_FILE: Final = "index.tsv"

INDEX_COLUMNS: Final = "id\tshard\tframes"


class FeatureStoreError(ValueError):
    """Raised when a feature store cannot be written or read; the message names the file and the remedy."""


@final
@dataclass(frozen=True, kw_only=True)
class FeatureStoreMeta:
    """What the features of a store are."""

    source: str
    """Identity of what made them: kind and content hash of the weights."""

    layers: list[int] | Literal["last"]
    """Indices of the layers, counted from 0; or the source's output, without an axis for layers."""

    pooling: str
    """``none``; ``mean`` over time; ``runs``: one for each run of equal units."""

    dtype: str
    """``float32``, ``float16``, or of units ``int16``."""

    file_format: str
    """``safetensors`` or ``npz``."""

    dim: int
    """D."""

    frame_rate_hz: float

    first_centre: Seconds
    """Centre of frame 0; frame t is centred at ``first_centre + t / frame_rate_hz``."""

    manifest: str
    """Digest of the manifest's rows."""

    max_shard_seconds: Seconds

    num_shards: int

    num_units: int | None = None
    """V, of units whether all of them occur or not; None for features."""


@final
class FeatureStore:
    """Reads a finished store: ``store[id]`` gives the features of an id. Of a file only what is asked for is read."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store.

        :raises FeatureStoreError: If there is no store, or it is unfinished or damaged.
        """
        self._folder = Path(folder)
        self.meta = read_meta(self._folder / META_FILE)
        self._entries = {id_: (file, frames) for id_, file, frames in read_index(self._folder / INDEX_FILE)}

    def __contains__(self, id_: object) -> bool:
        return id_ in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, id_: str) -> Tensor:
        """Return (L, T, D): without T if the features are means over time, without L if they are of ``last``.

        :raises FeatureStoreError: If the id is unknown, or its file is missing or damaged.
        """
        file, _ = self._find(id_)
        path = self._folder / file
        try:
            if path.suffix == ".npz":
                return torch.from_numpy(np.load(path, allow_pickle=False)["features"])
            with safe_open(path, framework="pt") as tensors:
                tensor: Tensor = tensors.get_tensor(id_)
                return tensor
        except (OSError, SafetensorError, ValueError, KeyError, BadZipFile) as ex:
            raise FeatureStoreError(
                f"{path}: cannot be read ({ex}). Delete the file and extract again: only what is missing is made."
            ) from None

    def num_frames(self, id_: str) -> int:
        """Return T of an id, also where the features are means over it.

        :raises FeatureStoreError: If the id is unknown.
        """
        return self._find(id_)[1]

    def _find(self, id_: str) -> tuple[str, int]:
        if (entry := self._entries.get(id_)) is None:
            raise FeatureStoreError(f"{self._folder}: has no features of '{id_}'. Its index.tsv names the ids.")
        return entry


def read_index(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield id, file and number of frames of each line of an index.

    :raises FeatureStoreError: If the file is missing or damaged.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        if header != INDEX_COLUMNS:
            raise ValueError("it must have the columns id, shard, frames")
        for id_, file, frames in (line.split("\t") for line in lines):
            yield id_, file, int(frames)
    except FileNotFoundError:
        raise FeatureStoreError(
            f"{path}: there is no such file. The store is unfinished: start the same extraction again, it goes on."
        ) from None
    except (OSError, ValueError) as ex:
        raise FeatureStoreError(f"{path}: cannot be read ({ex}). Delete it and extract again.") from None


def read_meta(path: Path) -> FeatureStoreMeta:
    """Read ``meta.json``.

    :raises FeatureStoreError: If the file is missing or damaged.
    """
    try:
        return FeatureStoreMeta(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FeatureStoreError(f"{path}: there is no such file. Make the store with `recipes.extract`.") from None
    except (OSError, TypeError, ValueError) as ex:
        raise FeatureStoreError(f"{path}: cannot be read ({ex}). Delete the folder and extract again.") from None

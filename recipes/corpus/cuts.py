"""Cuts of lhotse, from a file of JSON lines or a Shar folder, as rows of a manifest and arrays of codes."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from recipes.corpus.console import CorpusError
from recipes.corpus.shar import RECORDING, fill_cuts, list_shards
from spear_plugin.data.audio_shards import read_member
from spear_plugin.data.manifest import Domain, ManifestRow
from spear_plugin.data.scan import BadFile

_TOLERANCE: Final = 0.001
"""Seconds that a cut may be shorter than its recording."""

_Entry: TypeAlias = Mapping[str, Any]
"""A cut, or a part of one, as lhotse writes it."""


@final
class CodeArray(NamedTuple):
    """Where the codes of a cut are."""

    num_codebooks: int

    frame_shift: float
    """Seconds from one frame to the next."""

    storage: _Entry

    def read(self) -> NDArray[Any]:
        """Return the codes.

        :raises CorpusError: If they cannot be read.
        """
        path, key = Path(self.storage["storage_path"]), self.storage["storage_key"]

        try:
            if self.storage["storage_type"] == "numpy_files":
                path = path / key

                return _load_numpy(path)

            if self.storage["storage_type"] == "numpy_hdf5":
                return _read_hdf5(path, key)
        except (OSError, KeyError, ValueError) as ex:
            raise CorpusError(f"{path}: the codes cannot be read ({ex}). Restore the file.") from ex

        raise CorpusError(
            f"{path}: `{self.storage['storage_type']}` is not read, only numpy_files and numpy_hdf5. Copy the indexes "
            "with lhotse into one of these."
        )


@final
class Cut(NamedTuple):
    """A whole recording."""

    row: ManifestRow

    codes: CodeArray | None


@final
@dataclass(frozen=True)
class CutSource:
    """Where cuts come from, and what is wanted of them."""

    path: Path
    """Of JSON lines, or of a Shar folder."""

    domain: Domain

    code_field: str | None
    """Custom field with the codes, if they are wanted."""

    def read(self, report: Callable[[BadFile], None]) -> Iterator[Cut]:
        """Yield the usable cuts, one by one; ``report`` is told of the others.

        :raises CorpusError: If a file is missing, damaged or holds something else.
        """
        for path, line_number, entry in self._entries():
            try:
                yield self._convert(entry)
            except _UnusableError as ex:
                report(BadFile(Path(str(entry.get("id", line_number))), str(ex)))
            except (KeyError, TypeError, IndexError, AttributeError, ValueError) as ex:
                raise CorpusError(f"{path}, line {line_number}: is not a cut of lhotse ({ex!r}).") from ex

    def _entries(self) -> Iterator[tuple[Path, int, dict[str, Any]]]:
        if not self.path.is_dir():
            yield from ((self.path, *line) for line in _read_lines(self.path))
            return

        for shard in list_shards(self.path, [RECORDING, *([self.code_field] if self.code_field else [])]):
            yield from ((shard.cuts, *line) for line in fill_cuts(shard, _read_lines(shard.cuts)))

    def _convert(self, entry: _Entry) -> Cut:
        if entry.get("type", "MonoCut") not in ("MonoCut", "MultiCut") or RECORDING not in entry:
            raise _UnusableError(f"is a {entry.get('type')} without a recording of its own. Save the mixture as audio.")

        recording, sources = entry[RECORDING], entry[RECORDING]["sources"]

        if entry["start"] > _TOLERANCE or recording["duration"] - entry["duration"] > _TOLERANCE:
            raise _UnusableError("is a piece of its recording. Save it as audio, e.g. with `save_audios` of lhotse.")

        if len(sources) == 1 and sources[0]["type"] == "shar":
            raise _UnusableError("has its audio in a Shar folder. Name the folder in place of the cuts.")

        if len(sources) != 1 or sources[0]["type"] != "file":
            raise _UnusableError(
                "must have its audio in one file. Save it as audio, e.g. with `save_audios` of lhotse."
            )

        if recording.get("transforms"):
            raise _UnusableError(
                "has transforms, such as a change of speed. Save it as audio, or take the cuts without."
            )

        return Cut(_make_row(entry, sources[0], self.domain), self._find_codes(entry))

    def _find_codes(self, entry: _Entry) -> CodeArray | None:
        if self.code_field is None:
            return None

        if (codes := (entry.get("custom") or {}).get(self.code_field)) is None:
            raise _UnusableError(f"has no `{self.code_field}`.")

        return CodeArray(codes["array"]["shape"][1], codes["frame_shift"], codes["array"])


class _UnusableError(ValueError):
    """A cut cannot be a row of a manifest."""


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0

    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not isinstance(entry := json.loads(line), dict):
                    raise ValueError("no JSON object")

                yield number, entry
    except (ValueError, EOFError, gzip.BadGzipFile) as ex:
        raise CorpusError(f"{path}, behind line {number}: is cut off or no cuts in JSON lines ({ex}).") from ex


def _make_row(entry: _Entry, source: _Entry, domain: Domain) -> ManifestRow:
    supervisions = sorted(entry.get("supervisions", []), key=lambda supervision: float(supervision["start"]))

    return ManifestRow(
        id=entry["id"],
        path=Path(source["source"]).absolute(),
        num_samples=int(entry[RECORDING]["num_samples"]),
        sample_rate=int(entry[RECORDING]["sampling_rate"]),
        domain=domain,
        text=" ".join(" ".join(str(item.get("text") or "").split()) for item in supervisions).strip(),
        speaker=_common(supervisions, "speaker"),
        language=_common(supervisions, "language"),
    )


def _common(supervisions: Sequence[_Entry], key: str) -> str:
    values = {str(item.get(key) or "") for item in supervisions}

    return values.pop() if len(values) == 1 else ""


def _load_numpy(path: Path) -> NDArray[Any]:
    content = read_member(path)
    array: NDArray[Any] = np.load(path if content is None else io.BytesIO(content), allow_pickle=False)

    return array


def _read_hdf5(path: Path, key: str) -> NDArray[Any]:
    try:
        import h5py  # noqa: PLC0415 (optional)
    except ImportError:
        raise CorpusError(f"{path}: h5py is needed to read it. Install it: pip install h5py.") from None

    with h5py.File(path, "r") as file:
        return np.asarray(file[key])

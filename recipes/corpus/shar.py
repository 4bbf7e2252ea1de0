"""Folders of lhotse's Shar: cuts, and beside them their fields in tar archives, in the same order.

    cuts.000000.jsonl.gz  recording.000000.tar  codebook_indexes.000000.tar
    cuts.000001.jsonl.gz  ...

A member with the data of a cut (``ID.flac``) is followed by one with its description (``ID.json``); a cut without the
field has the empty members ``ID.nodata`` and ``ID.nometa``.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from recipes.corpus.console import CorpusError

RECORDING: Final = "recording"

_CUTS: Final = "cuts"

_RESTORE: Final = "Restore it, or write the Shar folder anew."


class ShardOfCuts(NamedTuple):
    """A file of cuts and, by field, the archive with what is in them."""

    cuts: Path

    archives: dict[str, Path]


class _Item(NamedTuple):
    id: str

    member: str
    """Name of the data in the archive."""

    description: dict[str, Any] | None
    """As lhotse writes it; None if the cut lacks the field."""


def list_shards(folder: Path, fields: Sequence[str]) -> list[ShardOfCuts]:
    """Return the shards of a folder.

    :param fields: Those of which the archives must be there.
    :raises CorpusError: If the folder has no cuts or an archive is missing.
    """
    paths = sorted(path for path in folder.glob(f"{_CUTS}*.jsonl*") if path.suffix in (".jsonl", ".gz"))

    if not paths:
        raise CorpusError(f"{folder}: holds no cuts of lhotse (cuts.000000.jsonl.gz). Name a Shar folder or its cuts.")

    shards = []

    for path in paths:
        number = path.name.removeprefix(_CUTS).partition(".jsonl")[0]
        archives = {field: folder / f"{field}{number}.tar" for field in fields}

        for archive in archives.values():
            if not archive.is_file():
                raise CorpusError(f"{archive}: is missing, although {path.name} is there. {_RESTORE}")

        shards.append(ShardOfCuts(path, archives))

    return shards


def fill_cuts(shard: ShardOfCuts, cuts: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the cuts of a shard with the places of their data, as if these were files in a folder.

    :raises CorpusError: If an archive is damaged or in another order.
    """
    items = {field: _read_items(archive) for field, archive in shard.archives.items()}

    for number, cut in cuts:
        for field, archive in shard.archives.items():
            item = next(items[field], None)

            if item is None or item.id != cut.get("id"):
                found = "ends" if item is None else f"has '{item.id}'"
                raise CorpusError(f"{archive}: {found} where {shard.cuts.name} has '{cut.get('id')}'. {_RESTORE}")

            _fill(cut, field, archive, item)

        yield number, cut


def _fill(cut: dict[str, Any], field: str, archive: Path, item: _Item) -> None:
    """Put the description of a field into its cut."""
    if field == RECORDING:
        cut.pop(field, None)

        if item.description is not None:
            cut[field] = item.description | {"sources": [{"type": "file", "source": str(archive / item.member)}]}
    else:
        cut["custom"] = {name: value for name, value in (cut.get("custom") or {}).items() if name != field}

        if item.description is not None:
            array = item.description.get("array", {})
            place = {"storage_type": "numpy_files", "storage_path": str(archive), "storage_key": item.member}
            cut["custom"][field] = item.description | {"array": array | place}


def _read_items(archive: Path) -> Iterator[_Item]:
    try:
        with tarfile.open(archive, "r:") as members:
            iterator = iter(members)

            for data in iterator:
                id_, description = data.name.rpartition(".")[0], next(iterator, None)

                if description is None or description.name not in (f"{id_}.json", f"{id_}.nometa"):
                    behind = "nothing" if description is None else f"'{description.name}'"
                    raise CorpusError(f"{archive}: '{data.name}' is followed by {behind}. {_RESTORE}")

                file = None if description.name.endswith(".nometa") else members.extractfile(description)
                yield _Item(id_, data.name, None if file is None else json.load(file))
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError) as ex:
        raise CorpusError(f"{archive}: is no uncompressed archive of Shar, or damaged ({ex}). {_RESTORE}") from ex

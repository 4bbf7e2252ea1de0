"""Whether a code store is whole and fits a manifest: every fault, where reading stops at the first.

Of each id, a hash and a number of frames are in memory, 12 bytes; texts are read for the ids that are named.

Letters: R recordings of the store or of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.codes import open_shard, read_header
from spear_plugin.data.manifest import ManifestTable
from spear_plugin.data.reading import MAX_CODE_DEFICIT
from spear_plugin.data.shards import CodeStoreError, CodeStoreIdentity, Shard
from spear_plugin.data.text_fields import Hashes

FAILURES_FILE: Final = "failed.tsv"
"""Where encoding lists the ids it had to leave out."""


@final
@dataclass(kw_only=True)
class StoreFindings:
    """What is in a store, and what is wrong with it."""

    identity: CodeStoreIdentity

    num_shards: int

    num_rows: int = 0
    """Recordings in the sound shards."""

    num_frames: int = 0
    """Frames in the sound shards."""

    bad_shards: list[str] = field(default_factory=list)
    """One line for each shard that cannot be used."""

    duplicate_ids: list[str] = field(default_factory=list)

    missing_ids: list[str] = field(default_factory=list)
    """In the manifest, not in the store, and not known to be unusable."""

    left_out_ids: list[str] = field(default_factory=list)
    """In the manifest, and listed in ``failed.tsv`` as unusable: no fault of the store."""

    surplus_ids: list[str] = field(default_factory=list)
    """In the store, not in the manifest."""

    wrong_lengths: list[str] = field(default_factory=list)
    """One line for each id whose frames do not fit its duration."""

    @property
    def is_sound(self) -> bool:
        faults = (self.bad_shards, self.duplicate_ids, self.missing_ids, self.surplus_ids, self.wrong_lengths)

        return not any(faults)


def verify_store(
    folder: Path,
    manifest: ManifestTable | None = None,
    *,
    watch: Callable[[Sequence[Path]], Iterable[Path]] = lambda shards: shards,
) -> StoreFindings:
    """Read a whole store.

    :param manifest: That the store should hold, if it is to be compared with one.
    :param watch: Goes through the files of the shards one by one, for example under a progress bar.
    :raises CodeStoreError: If there is no store or it is unfinished. Faults of its parts are returned, not raised.
    """
    identity, checksums = read_header(folder)
    findings = StoreFindings(identity=identity, num_shards=len(checksums))
    content = _Content()

    for path in watch(list(checksums)):
        try:
            content.add(open_shard(path, identity, checksums[path]))
        except CodeStoreError as ex:
            findings.bad_shards.append(str(ex))

    content.sort()
    findings.num_rows = content.hashes.size
    findings.num_frames = int(content.num_frames.sum())
    findings.duplicate_ids = content.find_duplicates()

    if manifest is not None:
        _compare(findings, content, manifest, _read_failures(folder / FAILURES_FILE))

    return findings


@final
class _Content:
    """The ids of a store by their hashes, in the order of the hashes once sorted."""

    def __init__(self) -> None:
        self._shards: list[Shard] = []
        self._hashes: list[Hashes] = []
        self._num_frames: list[NDArray[np.int32]] = []

    def add(self, shard: Shard) -> None:
        """Take over a shard.

        :raises CodeStoreError: If it is damaged; nothing is taken over then.
        """
        num_frames = shard.num_frames().astype(np.int32)
        self._shards.append(shard)
        self._hashes.append(shard.id_hashes())
        self._num_frames.append(num_frames)

    def sort(self) -> None:
        """Make what was added ready to be asked for."""
        self._starts = np.cumsum([0, *(part.size for part in self._hashes)])
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *self._hashes])
        self._places = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self._places]
        """(R,), ascending."""

        self.num_frames = np.concatenate([np.empty(0, dtype=np.int32), *self._num_frames])[self._places]
        """(R,)"""

    def id(self, index: int) -> str:
        """Return the id with that place among the sorted hashes."""
        place = int(self._places[index])
        shard = int(self._starts.searchsorted(place, "right")) - 1

        return self._shards[shard].id(place - int(self._starts[shard]))

    def find_duplicates(self) -> list[str]:
        """Return each id that occurs again, as often as it does."""
        (again,) = np.nonzero(self.hashes[1:] == self.hashes[:-1])
        seen = {self.id(index) for index in np.setdiff1d(again, again + 1).tolist()}
        duplicates = []

        for id_ in map(self.id, (again + 1).tolist()):
            if id_ in seen:
                duplicates.append(id_)

            seen.add(id_)

        return duplicates


def _compare(findings: StoreFindings, content: _Content, manifest: ManifestTable, failures: set[str]) -> None:
    """Ids are compared by their hashes: among 40 million, one in 10,000 corpora holds two that are alike."""
    places, is_there = _look_up(manifest.id_hashes, content.hashes)
    absent = [manifest[index].id for index in np.nonzero(~is_there)[0].tolist()]
    findings.missing_ids = [id_ for id_ in absent if id_ not in failures]
    findings.left_out_ids = [id_ for id_ in absent if id_ in failures]

    _, is_wanted = _look_up(content.hashes, np.sort(manifest.id_hashes))
    findings.surplus_ids = [content.id(index) for index in np.nonzero(~is_wanted)[0].tolist()]

    expected = (manifest.num_samples * findings.identity.frame_rate_hz / manifest.sample_rates).astype(np.int64)
    found = np.where(is_there, content.num_frames[places], expected) if content.hashes.size else expected

    for index in np.nonzero(abs(found - expected) > MAX_CODE_DEFICIT)[0].tolist():
        findings.wrong_lengths.append(f"{manifest[index].id}: has {found[index]} frames, but lasts {expected[index]}")


def _look_up(wanted: Hashes, ordered: Hashes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each hash is among ascending ones, and whether it is there at all."""
    places = np.searchsorted(ordered, wanted).clip(max=max(ordered.size - 1, 0))

    return places, ordered[places] == wanted if ordered.size else np.zeros(wanted.size, dtype=np.bool_)


def _read_failures(path: Path) -> set[str]:
    if not path.exists():
        return set()

    return {line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]}

"""Whether a code store is whole and fits a manifest: every fault, where reading stops at the first.

Letters: T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from spear_plugin.data.codes import open_shard, read_header
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.reading import MAX_CODE_DEFICIT
from spear_plugin.data.shards import CodeStoreError, CodeStoreIdentity

FAILURES_FILE: Final = "failed.tsv"
"""Where encoding lists the ids it had to leave out."""


@final
@dataclass(kw_only=True)
class StoreFindings:
    """What is in a store, and what is wrong with it."""

    identity: CodeStoreIdentity

    num_shards: int

    num_frames: dict[str, int] = field(default_factory=dict)
    """Frames of each id in the sound shards."""

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


def verify_store(folder: Path, rows: Sequence[ManifestRow] | None = None) -> StoreFindings:
    """Read a whole store.

    :param rows: Of the manifest that the store should hold, if it is to be compared with one.
    :raises CodeStoreError: If there is no store or it is unfinished. Faults of its parts are returned, not raised.
    """
    identity, checksums = read_header(folder)
    findings = StoreFindings(identity=identity, num_shards=len(checksums))

    for path, checksum in checksums.items():
        try:
            shard = open_shard(path, identity, checksum)
            lengths = dict(zip(shard.ids(), shard.num_frames().tolist(), strict=True))
        except CodeStoreError as ex:
            findings.bad_shards.append(str(ex))
            continue

        findings.duplicate_ids += findings.num_frames.keys() & lengths.keys()
        findings.num_frames |= lengths

    if rows is not None:
        _compare(findings, rows, _read_failures(folder / FAILURES_FILE))

    return findings


def _compare(findings: StoreFindings, rows: Sequence[ManifestRow], failures: set[str]) -> None:
    ids = {row.id for row in rows}
    findings.surplus_ids = [id_ for id_ in findings.num_frames if id_ not in ids]
    absent = [row.id for row in rows if row.id not in findings.num_frames]
    findings.missing_ids = [id_ for id_ in absent if id_ not in failures]
    findings.left_out_ids = [id_ for id_ in absent if id_ in failures]

    for row in rows:
        expected = int(row.num_samples * findings.identity.frame_rate_hz / row.sample_rate)

        if abs((found := findings.num_frames.get(row.id, expected)) - expected) > MAX_CODE_DEFICIT:
            findings.wrong_lengths.append(f"{row.id}: has {found} frames, but lasts {expected}")


def _read_failures(path: Path) -> set[str]:
    if not path.exists():
        return set()

    return {line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]}

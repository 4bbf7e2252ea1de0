"""How often the entries of a store's codebooks occur. Letters: K codebooks, V entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.codes import CodeStoreIdentity, open_shard, read_header


@final
@dataclass(frozen=True)
class CodeCounts:
    """What was counted in a store."""

    identity: CodeStoreIdentity

    num_rows: int

    entries: NDArray[np.int64]
    """(K, V): how often each entry occurs."""


def count_codes(
    folder: Path, *, watch: Callable[[Sequence[Path]], Iterable[Path]] = lambda shards: shards
) -> CodeCounts:
    """Count the codes of a store.

    :param watch: Goes through the files of the shards one by one, for example under a progress bar.
    :raises CodeStoreError: If the store is unfinished or damaged.
    """
    identity, checksums = read_header(folder)
    entries = np.zeros((identity.num_codebooks, identity.codebook_size), dtype=np.int64)
    num_rows = 0

    for path in watch(list(checksums)):
        shard = open_shard(path, identity, checksums[path])
        entries += np.stack([np.bincount(column, minlength=identity.codebook_size) for column in shard.all_codes().T])
        num_rows += shard.num_frames().size

    return CodeCounts(identity, num_rows, entries)

"""The count of recordings that cannot be used, shared by the threads of a reader."""

from __future__ import annotations

from threading import Lock
from typing import final

from fairseq2.logging import log

from spear_plugin.data.options import SpearDatasetError


@final
class SkipLog:
    """Names each skipped row once and gives up when there are too many, or when nothing is left."""

    def __init__(self, max_skipped: int, num_rows: int) -> None:
        self._max_skipped = max_skipped
        self._num_rows = num_rows
        self._keys: set[tuple[str, str]] = set()
        self._lock = Lock()

    def add(self, corpus: str, id_: str, reason: Exception) -> None:
        with self._lock:
            if (corpus, id_) in self._keys:
                return

            self._keys.add((corpus, id_))

            log.warning("Skipping '{}' of corpus {} ({} skipped so far): {}", id_, corpus, len(self._keys), reason)

            if len(self._keys) > min(self._max_skipped, self._num_rows - 1):
                raise SpearDatasetError(
                    f"{len(self._keys)} of {self._num_rows} rows could not be read, more than `max_skipped` "
                    f"({self._max_skipped}) or all of them. The last, in corpus {corpus}: {reason}"
                )

"""The noise corpus: pieces of recordings at random.

Letters: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from spear_plugin.data.audio import AudioError, read_audio, resampled_length
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.data.options import SpearDatasetError
from spear_plugin.data.skipping import SkipLog

_MAX_DRAWS: Final = 10
"""If so many recordings in a row cannot be read, an example goes without noise."""


@final
class NoiseCorpus:
    """Draws pieces of noise. Holds no random state, so several threads may use it at once."""

    def __init__(self, rows: Sequence[ManifestRow], *, sample_rate: int, skip_log: SkipLog) -> None:
        """Hold the recordings.

        :param rows: At least one.
        :param sample_rate: Of the pieces, in Hz.
        :param skip_log: Is told of recordings that cannot be read.
        """
        self._rows = rows
        self._sample_rate = sample_rate
        self._skip_log = skip_log

    def draw(self, generator: np.random.Generator, length: int) -> tuple[NDArray[np.float32] | None, int]:
        """Return ``length`` samples of a random recording, and how many unreadable ones were drawn before it.

        The piece begins anywhere in a longer recording; a shorter one is repeated from its beginning. An unreadable
        recording is named once in the log, and another one is drawn; after ten in a row there is no noise.

        :raises SpearDatasetError: If more recordings than allowed, or all, cannot be read.
        """
        for num_skipped in range(_MAX_DRAWS):
            row = self._rows[int(generator.integers(len(self._rows)))]

            try:
                return self._read(row, generator, length), num_skipped
            except AudioError as ex:
                self._skip_log.add("noise", row.id, ex)

        return None, _MAX_DRAWS

    def _read(self, row: ManifestRow, generator: np.random.Generator, length: int) -> NDArray[np.float32]:
        rate = self._sample_rate
        surplus = resampled_length(row.num_samples, row.sample_rate, rate) - length

        if surplus > 0:
            start = int(generator.integers(surplus + 1))
            piece = read_audio(row.path, sample_rate=rate, start=start / rate, duration=length / rate)
        else:
            piece = read_audio(row.path, sample_rate=rate)

        # (S') -> (S), repeated as often as necessary
        return np.resize(piece, length)


def open_noise_corpus(manifest: Path, *, sample_rate: int, max_skipped: int) -> NoiseCorpus:
    """Open a manifest of noise recordings.

    :param max_skipped: Recordings that may turn out unreadable before drawing raises an error.
    :raises ManifestError: If the manifest is missing or invalid.
    :raises SpearDatasetError: If it has no rows.
    """
    rows = read_manifest(manifest)

    if not rows:
        raise SpearDatasetError(f"{manifest}: the noise manifest has no rows. Add recordings or turn noise mixing off.")

    log.info("Noise corpus {}: {} rows, {:.2f} hours.", manifest, len(rows), sum(row.duration for row in rows) / 3600)

    return NoiseCorpus(rows, sample_rate=sample_rate, skip_log=SkipLog(max_skipped, len(rows)))

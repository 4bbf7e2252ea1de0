"""Random pieces of rows, for readers that crop. Letters: S samples."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.seeds import derive_seed

STANDARDIZATION_EPSILON: Final = 1e-5


def draw_start(num_starts: int, *, seed: int, epoch: int, corpus: str, id_: str) -> int:
    """Return a number below ``num_starts``, at least 1, that follows from the row and the epoch alone."""
    share: float = np.random.default_rng(derive_seed("piece", seed, epoch, corpus, id_)).random()
    return int(share * num_starts)


def standardize(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a whole recording (S,) with the mean 0 and the variance 1 (SpidR, arXiv 2512.20308)."""
    # In float64: float32 loses digits over the samples of a long recording.
    mean = waveform.mean(dtype=np.float64)
    variance = np.square(waveform - mean, dtype=np.float64).mean()
    scaled: NDArray[np.float32] = ((waveform - mean) / np.sqrt(variance + STANDARDIZATION_EPSILON)).astype(np.float32)
    return scaled

"""What a reader must be told, by recipes and by whoever else reads a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

import torch

from spear_plugin.data.manifest import DOMAINS, Domain, ManifestRow, Seconds
from spear_plugin.data.mixing_options import MixingOptions
from spear_plugin.data.segments import FrameClock, common_grid


class SpearDatasetError(ValueError):
    """Raised when a dataset cannot be opened or read on; the message is one line with the remedy."""


class FrameMasker(Protocol):
    """Draws which frames of a batch a model has to predict."""

    def draw(self, lengths: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Return (N, T) bool on the host for N ``lengths`` in samples, drawn from a generator of the CPU."""


class RowCheck(Protocol):
    """Tells which rows a task can use."""

    def __call__(self, row: ManifestRow) -> str | None:
        """Return why a row cannot be used, in words that are the same for all rows with this problem; else None."""


@final
@dataclass(kw_only=True)
class ClassBalance:
    """Draws rare classes more often: first the class of an example, then the example.

    A class with n rows is drawn in proportion to n / (n + ``smoothing``), so a row in proportion to the sum over its
    classes of 1 / (n + ``smoothing``).
    """

    smoothing: float = 0.0
    """Rows from which on a class counts as frequent; 0 draws all classes alike, as PSLA (arXiv 2102.01243) does."""


@final
@dataclass(kw_only=True)
class StreamOptions:
    """A target stream that batches must hold."""

    num_codebooks: int

    frame_rate_hz: float

    codebook_size: int = 256
    """Entries of each codebook."""

    domains: tuple[Domain, ...] = DOMAINS
    """Domains whose examples must have codes. The others get padding, even where a store has codes for them;
    without any domain no store is needed."""


@final
@dataclass(kw_only=True)
class ReaderOptions:
    """How examples become batches."""

    max_batch_seconds: Seconds
    """Audio of a batch, padding included; never exceeded."""

    min_seconds: Seconds = 1.0
    """Shorter rows are left out."""

    max_seconds: Seconds = 30.0
    """Longer rows are cut into segments, or with ``crop`` to one."""

    crop: bool = False
    """True: an example is a random piece of its row, as long as the shortest of its batch, so that there is no padding.
    It follows from (seed, epoch, id)."""

    standardize: bool = False
    """Gives whole rows, before anything is cut, the mean 0 and the variance 1."""

    masker: FrameMasker | None = None
    """Gives each batch a mask, which follows from (seed, epochs, examples of the batch)."""

    row_check: RowCheck | None = None
    """Rows that it objects to are left out and counted."""

    balance: ClassBalance | None = None
    """Draws by the classes of rows. None: each example once an epoch. Not applied without ``shuffle``."""

    streams: Mapping[str, StreamOptions] = field(default_factory=dict)
    """Target streams by name."""

    num_buckets: int = 20
    """Classes of like lengths: more of them pad less and mix less."""

    shuffle: bool = True
    """True: training, without end. False: validation, each example once."""

    seed: int = 2

    num_accumulate: int = 1
    """Batches per step."""

    num_parallel: int = 2
    """Batches read at the same time."""

    num_prefetch: int = 4
    """Batches ready in advance."""

    max_skipped: int = 100
    """More different examples than this that cannot be read are an error."""

    sample_rate: int = 16_000
    """Of the waveforms, in Hz."""

    mixing: MixingOptions = field(default_factory=MixingOptions)
    """Noise and utterances added to examples; by default none. Also applied without ``shuffle``."""

    @property
    def clocks(self) -> dict[str, FrameClock]:
        """Counts the code frames of each stream."""
        return {name: FrameClock.of(stream.frame_rate_hz, self.sample_rate) for name, stream in self.streams.items()}

    def to_samples(self, duration: Seconds) -> int:
        return round(duration * self.sample_rate)

    def segment_grid(self) -> int:
        """Return the number of samples at whose multiples segments may begin.

        :raises SpearDatasetError: If no segment could be so short.
        """
        grid = common_grid(self.clocks.values())

        if grid > self.to_samples(self.max_seconds):
            rates = {name: stream.frame_rate_hz for name, stream in self.streams.items()}
            raise SpearDatasetError(
                f"The frame rates {rates} meet only every {grid / self.sample_rate:g} s, so rows cannot be cut to "
                f"`max_seconds` ({self.max_seconds}). Raise it."
            )

        return grid

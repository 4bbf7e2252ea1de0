"""The batch of SPEAR pre-training.

Letters: N batch, S samples, T code frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

import numpy as np
import torch
from fairseq2.device import Device, SupportsDeviceTransfer
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from spear_plugin.data.codes import StoredCodes
from spear_plugin.data.manifest import DOMAINS, Domain, Seconds

CODE_PADDING: Final = -100
"""Code of frames that have no target, ignored by the loss."""

Codes: TypeAlias = StoredCodes | NDArray[np.int16]
"""As stored, or mixed and then with ``CODE_PADDING`` where neither signal has codes."""


@final
@dataclass(frozen=True, kw_only=True)
class SpearExample:
    """One row of a manifest, or one segment of a long row."""

    id: str

    domain: Domain

    start: Seconds
    """Where the segment begins in the row."""

    waveform: NDArray[np.float32]
    """(S,)"""

    codes: Mapping[str, Codes]
    """Stream to (T, K); streams without codes for the domain are left out."""

    corpus: str = ""
    """Name of the corpus."""

    text: str = ""
    """Transcript of the row."""

    labels: tuple[str, ...] = ()
    """Classes of the row."""

    epoch: int = 0
    """How often the corpus was read before."""

    num_skipped_noise: int = 0
    """Noise recordings that were drawn for the example and could not be read."""


@final
@dataclass(frozen=True, kw_only=True)
class StreamShape:
    """Size of the codes of a stream in one batch."""

    num_frames: int
    num_codebooks: int


@final
@dataclass(kw_only=True, eq=False)
class SpearBatch(SupportsDeviceTransfer):
    waveforms: Tensor
    """(N, S) float32 in [-1, 1], mixtures possibly beyond, zeros behind the end of an example."""

    lengths: Tensor
    """(N,) int64, in samples."""

    seq_lens: list[int]
    """The same on the host."""

    codes: dict[str, Tensor]
    """Stream to (N, T, K) int16, ``CODE_PADDING`` where there is no target."""

    domains: Tensor
    """(N,) int64, index into ``DOMAINS``: 0 speech, 1 audio."""

    domain_numbers: list[int] = field(default_factory=list)
    """The same on the host."""

    ids: list[str]
    """Id of the row of each example; segments of one row share it."""

    starts: list[Seconds] = field(default_factory=list)
    """Where each example begins in its row."""

    texts: list[str] = field(default_factory=list)
    """Transcript of the row of each example, empty where there is none."""

    labels: list[tuple[str, ...]] = field(default_factory=list)
    """Classes of the row of each example."""

    num_skipped: int = 0
    """Examples of this batch that could not be used."""

    num_skipped_noise: int = 0
    """Noise recordings that were drawn for this batch and could not be read."""

    sample_rate: int = 16_000

    mask: Tensor | None = None
    """(N, F) bool, the frames to predict, if the reader has a masker; on the host, where a model reads it without
    waiting for the device."""

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        self.waveforms = self.waveforms.to(device, non_blocking=non_blocking)
        self.lengths = self.lengths.to(device, non_blocking=non_blocking)
        self.domains = self.domains.to(device, non_blocking=non_blocking)
        self.codes = {name: codes.to(device, non_blocking=non_blocking) for name, codes in self.codes.items()}

    @property
    def num_examples(self) -> int:
        return len(self.seq_lens)

    @property
    def num_elements(self) -> int:
        """Samples without padding."""
        return sum(self.seq_lens)

    @property
    def seconds(self) -> Seconds:
        """Audio without padding."""
        return self.num_elements / self.sample_rate


def create_spear_batch(
    examples: Sequence[SpearExample],
    streams: Mapping[str, StreamShape],
    *,
    sample_rate: int = 16_000,
    num_skipped: int = 0,
    mask: Tensor | None = None,
) -> SpearBatch:
    """Pad examples to a batch: waveforms with zeros to the longest, codes with ``CODE_PADDING`` to the stream's shape.

    :param examples: At least one.
    :param mask: Of the batch, (N, F), passed on.
    """
    seq_lens = [example.waveform.shape[0] for example in examples]
    domain_numbers = [DOMAINS.index(example.domain) for example in examples]
    waveforms = np.empty((len(examples), max(seq_lens)), dtype=np.float32)  # (N, S)

    for row, example, length in zip(waveforms, examples, seq_lens, strict=True):
        row[:length], row[length:] = example.waveform, 0.0

    return SpearBatch(
        waveforms=torch.from_numpy(waveforms),
        lengths=torch.tensor(seq_lens),
        seq_lens=seq_lens,
        codes={name: _pad_codes(examples, name, shape) for name, shape in streams.items()},
        domains=torch.tensor(domain_numbers),
        domain_numbers=domain_numbers,
        ids=[example.id for example in examples],
        starts=[example.start for example in examples],
        texts=[example.text for example in examples],
        labels=[example.labels for example in examples],
        num_skipped=num_skipped,
        num_skipped_noise=sum(example.num_skipped_noise for example in examples),
        sample_rate=sample_rate,
        mask=mask,
    )


def _pad_codes(examples: Sequence[SpearExample], stream: str, shape: StreamShape) -> Tensor:
    size = (len(examples), shape.num_frames, shape.num_codebooks)
    padded = np.full(size, CODE_PADDING, dtype=np.int16)  # (N, T, K)

    for row, example in zip(padded, examples, strict=True):
        if (codes := example.codes.get(stream)) is not None:
            row[: codes.shape[0]] = codes

    return torch.from_numpy(padded)

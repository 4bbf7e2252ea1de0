"""What evaluations of fine-tuned models share: reading a corpus in batches, and keeping count of what is of no use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.logging import log
from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.common import CorpusSection, check_failures, default_common_section, read_batches, write_failures
from recipes.tasks import WorkClock
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.models.downstream import EncoderConfig, num_encoder_frames

FAILURES_FILE: Final = "failed.tsv"

_SAMPLE_RATE: Final = 16_000


@dataclass(kw_only=True)
class EvaluationConfig(Validatable):
    """What all evaluations are configured by."""

    checkpoint: str | None = None
    """A card's name, or the folder of a fine-tuning run, whose last checkpoint is taken."""

    corpus: CorpusSection = field(default_factory=CorpusSection)

    num_resamples: int = 2000
    """Of the bootstrap; with hundreds of labels and tens of thousands of recordings so many take minutes."""

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common_section)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.checkpoint is None:
            result.add_error("`checkpoint` must be the name of a card or the folder of a run.")
        if self.num_resamples < 1:
            result.add_error(f"`num_resamples` must be at least 1, but is {self.num_resamples}.")
        return result


@final
@dataclass(frozen=True)
class EvaluationBatch:
    """Recordings that a model can be run on."""

    ids: list[str]

    waveforms: Tensor
    """(N, S) float32 at 16 kHz, padded with zeros."""

    lengths: Tensor
    """(N,) int64, in samples, on the host."""


@final
class EvaluationReader:
    """Reads the recordings of a manifest for an encoder.

    Args:
        section: The corpus and its batches.
        encoder: Tells how long a recording must be.
        device: Where waveforms go.
    """

    def __init__(self, section: CorpusSection, encoder: EncoderConfig, device: torch.device) -> None:
        self._section = section
        self._encoder = encoder
        self._device = device
        self.failures: list[tuple[str, str]] = []

    def select(
        self, rows: Sequence[ManifestRow], find_problem: Callable[[ManifestRow], str | None]
    ) -> list[ManifestRow]:
        """Return the rows without a problem; the others are failures."""
        problems = [(row, find_problem(row)) for row in rows]
        self.failures += [(row.id, problem) for row, problem in problems if problem is not None]
        return [row for row, problem in problems if problem is None]

    def read(self, rows: Sequence[ManifestRow]) -> Iterator[EvaluationBatch]:
        """Yield the rows whose audio can be used in batches of like lengths, the longest first."""
        clock = WorkClock(sum(row.duration for row in rows))
        for batch, reads in read_batches(
            rows,
            self._section,
            sample_rate=_SAMPLE_RATE,
            num_frames=lambda num_samples: num_encoder_frames(num_samples, self._encoder),
            reader="the encoder",
        ):
            read = [(row.id, waveform) for row, waveform in zip(batch, reads, strict=True)]
            self.failures += [(id_, waveform) for id_, waveform in read if isinstance(waveform, str)]
            if usable := {id_: waveform for id_, waveform in read if isinstance(waveform, Tensor)}:
                lengths = torch.tensor([waveform.numel() for waveform in usable.values()])
                waveforms = pad_sequence(list(usable.values()), batch_first=True)
                yield EvaluationBatch(list(usable), waveforms.to(self._device), lengths)
            log.info("{} recordings, {}.", len(batch), clock.advance(sum(row.duration for row in batch)))

    def finish(self, folder: Path) -> None:
        """Write the failures, and raise `RecipeError` if there are more than allowed."""
        write_failures(folder / FAILURES_FILE, self.failures)
        check_failures(len(self.failures), self._section, folder)

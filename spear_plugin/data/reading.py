"""Reading of the audio and codes of a batch; what cannot be used is left out, named and counted.

Letters: S samples, T frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear_plugin.data.audio import AudioError, read_audio, resampled_length
from spear_plugin.data.batch import SpearBatch, SpearExample, StreamShape, create_spear_batch
from spear_plugin.data.codes import CodeStore, StoredCodes
from spear_plugin.data.grouping import Examples
from spear_plugin.data.manifest import ManifestRow, ManifestTable, Seconds
from spear_plugin.data.mixing import create_mixer
from spear_plugin.data.options import ReaderOptions
from spear_plugin.data.pieces import draw_start, standardize
from spear_plugin.data.seeds import derive_seed
from spear_plugin.data.segments import SegmentTable
from spear_plugin.data.skipping import SkipLog

MAX_CODE_DEFICIT: Final = 5
"""Frames by which codes and audio may disagree; the authors' code asserts the same."""

_MAX_LENGTH_ERROR: Final[Seconds] = 0.05


@final
@dataclass(frozen=True, kw_only=True)
class CorpusView:
    """One corpus as the pipeline sees it."""

    name: str
    rows: Sequence[ManifestRow]
    segments: SegmentTable
    stores: Mapping[str, CodeStore]

    weight: float
    """Probability, up to a factor, that the next example comes from this corpus."""

    @property
    def shards(self) -> NDArray[np.uint32] | None:
        """Of the segments, the number of the shard that holds the audio; None where it is in files of its own."""
        of_rows = self.rows.shards if isinstance(self.rows, ManifestTable) else None
        return None if of_rows is None else of_rows[self.segments.rows]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of the segments, in samples."""
        return self.segments.lengths


class _Piece(NamedTuple):
    """An example before it is read."""

    corpus: CorpusView
    segment: int
    epoch: int

    @property
    def row(self) -> ManifestRow:
        return self.corpus.rows[int(self.corpus.segments.rows[self.segment])]

    @property
    def length(self) -> int:
        return int(self.corpus.segments.lengths[self.segment])


class _SkipError(ValueError):
    """An example cannot be used for another reason than its audio."""


@final
class BatchLoader:
    """Reads the audio and codes of a batch. Several threads call it at once."""

    def __init__(self, corpora: Sequence[CorpusView], options: ReaderOptions) -> None:
        self._corpora = corpora
        self._options = options
        self._skip_log = SkipLog(options.max_skipped, sum(np.unique(view.segments.rows).size for view in corpora))
        self._clocks = options.clocks
        self._mixer = create_mixer(options)

    def __call__(self, planned: Examples) -> SpearBatch | None:
        """Return None if no example can be used, or there is none; those that cannot are named in the log only."""
        pieces = [_Piece(self._corpora[corpus], segment, epoch) for corpus, segment, epoch in planned.tolist()]
        # Of what the manifests say, so that an unreadable file does not change the others' pieces.
        shortest = min((piece.length for piece in pieces), default=0)
        reads = [self._read(piece, shortest if self._options.crop else piece.length) for piece in pieces]
        examples = [example for example in reads if example is not None]

        if not examples:
            return None

        if self._mixer is not None:
            examples = self._mixer(examples)

        length = max(example.waveform.size for example in examples)
        shapes = {
            name: StreamShape(num_frames=self._clocks[name].num_frames(length), num_codebooks=stream.num_codebooks)
            for name, stream in self._options.streams.items()
        }

        return create_spear_batch(
            examples,
            shapes,
            sample_rate=self._options.sample_rate,
            num_skipped=len(pieces) - len(examples),
            mask=self._draw_mask(examples),
        )

    def _draw_mask(self, examples: Sequence[SpearExample]) -> Tensor | None:
        if (masker := self._options.masker) is None:
            return None

        content = [(example.corpus, example.id, example.start, example.epoch) for example in examples]
        seed = derive_seed("mask", self._options.seed, content) % 2**63

        return masker.draw([example.waveform.size for example in examples], torch.Generator().manual_seed(seed))

    def _read(self, piece: _Piece, length: int) -> SpearExample | None:
        corpus, row = piece.corpus, piece.row  # read from the manifest here
        start = self._find_start(piece, row, length)

        try:
            return SpearExample(
                id=row.id,
                corpus=corpus.name,
                epoch=piece.epoch,
                domain=row.domain,
                text=row.text,
                labels=row.labels,
                start=start / self._options.sample_rate,
                waveform=self._read_waveform(row, start, length),
                codes=self._read_codes(corpus, row, start, length),
            )
        except (AudioError, _SkipError) as ex:
            self._skip_log.add(corpus.name, row.id, ex)

            return None

    def _find_start(self, piece: _Piece, row: ManifestRow, length: int) -> int:
        """Return where an example begins, in samples."""
        corpus = piece.corpus

        if not self._options.crop:
            return int(corpus.segments.starts[piece.segment])

        num_starts = self._row_length(row) - length + 1
        grid = self._options.segment_grid()
        start = draw_start(num_starts, seed=self._options.seed, epoch=piece.epoch, corpus=corpus.name, id_=row.id)

        return start // grid * grid

    def _row_length(self, row: ManifestRow) -> int:
        return resampled_length(row.num_samples, row.sample_rate, self._options.sample_rate)

    def _read_waveform(self, row: ManifestRow, start: int, length: int) -> NDArray[np.float32]:
        if not self._options.standardize:
            return self._read_piece(row, start, length)

        return standardize(self._read_piece(row, 0, self._row_length(row)))[start : start + length]

    def _read_piece(self, row: ManifestRow, start: int, length: int) -> NDArray[np.float32]:
        rate = self._options.sample_rate

        if length < self._row_length(row):
            waveform = read_audio(row.path, sample_rate=rate, start=start / rate, duration=length / rate)
        else:
            waveform = read_audio(row.path, sample_rate=rate)

        if abs(waveform.size - length) > _MAX_LENGTH_ERROR * rate:
            raise AudioError(
                row.path,
                f"has {waveform.size / rate:.3f} s, but the manifest says {length / rate:.3f} s",
                "Restore the file or make the manifest anew.",
            )

        if waveform.size < length:
            waveform = np.pad(waveform, (0, length - waveform.size))

        return waveform[:length]

    def _read_codes(self, corpus: CorpusView, row: ManifestRow, start: int, length: int) -> dict[str, StoredCodes]:
        row_length = self._row_length(row)
        codes = {}

        for name, stream in self._options.streams.items():
            if row.domain not in stream.domains:
                continue

            row_codes, clock = corpus.stores[name][row.id], self._clocks[name]  # (T, K)

            num_frames = clock.num_frames(row_length)

            if abs(row_codes.shape[0] - num_frames) > MAX_CODE_DEFICIT:
                raise _SkipError(
                    f"{corpus.stores[name].folder}: has {row_codes.shape[0]} code frames of stream {name} for "
                    f"{num_frames} of audio, more than {MAX_CODE_DEFICIT} apart. Encode the corpus again."
                )

            first = clock.num_frames(start)
            codes[name] = row_codes[first : first + clock.num_frames(length)]

        return codes

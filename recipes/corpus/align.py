"""Forced alignment of English recordings: ``python -m recipes.corpus.align MANIFEST OUT.tsv``.

PocketSphinx (5.1; its wheel holds a US English acoustic model and the CMU dictionary) finds where each phone of the
text lies: first a pass for the words, then one for the phones within them, at 10 ms.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder
from rich.console import Console

from recipes.corpus.console import CorpusError, default_num_workers, map_parallel, run_command
from spear_plugin.data.alignments import SILENCE_PHONE, Segment, write_alignment
from spear_plugin.data.audio import AudioError, read_audio
from spear_plugin.data.files import abbreviate, atomic_file
from spear_plugin.data.manifest import ManifestRow, read_manifest

_SAMPLE_RATE: Final = 16_000
_FRAME_HZ: Final = 100

_DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@final
@dataclass(frozen=True)
class Unaligned:
    id: str
    reason: str


class AlignmentError(ValueError):
    """Raised when a text cannot be laid on its recording; the message is the reason."""


def spoken_words(text: str) -> list[str]:
    """Return the words as the dictionary spells them; single digits are spelt out.

    :raises AlignmentError: If there is no word, or a longer number, which may be read in several ways.
    """
    words = re.findall(r"[a-z0-9']+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))

    words = [_DIGITS[int(word)] if len(word) == 1 and word.isdigit() else word for word in words]

    if numbers := [word for word in words if any(character.isdigit() for character in word)]:
        raise AlignmentError(f"has a number that may be read in several ways: {' '.join(numbers)}")

    if not (words := [stripped for word in words if (stripped := word.strip("'"))]):
        raise AlignmentError("has no words")

    return words


class Aligner:
    """Lays a text on a recording; alike for each, whatever was aligned before."""

    def __init__(self) -> None:
        # The default `live` cepstral mean is an estimate; `batch` is the recording's own.
        self._decoder = Decoder(loglevel="FATAL", lm=None, bestpath=False, cmn="batch")

    def __call__(self, waveform: NDArray[np.float32], text: str) -> list[Segment]:
        """Return the segments in time order.

        :param waveform: Shape (S,), at 16 kHz, in [-1, 1].
        :raises AlignmentError: If the text has unknown words or does not fit.
        """
        words = spoken_words(text)

        if unknown := [word for word in words if self._decoder.lookup_word(word) is None]:
            raise AlignmentError(f"has words that the dictionary does not know: {' '.join(unknown)}")

        samples = (np.clip(waveform, -1.0, 1.0) * 32_767).astype(np.int16).tobytes()

        # Else the noise estimate carries on from one recording to the next.
        self._decoder.reinit_feat()

        try:
            self._decoder.set_align_text(" ".join(words))

            self._decode(samples)

            if self._decoder.hyp() is None:
                raise AlignmentError("does not fit the recording")

            self._decoder.set_alignment()

            self._decode(samples)

            alignment = self._decoder.get_alignment()
        except RuntimeError as ex:
            raise AlignmentError("does not fit the recording") from ex

        return [
            Segment(
                phone.start / _FRAME_HZ, (phone.start + phone.duration) / _FRAME_HZ, phone.name, _base_form(word.name)
            )
            for word in alignment
            for phone in word
        ]

    def _decode(self, samples: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()


def _base_form(word: str) -> str:
    # The dictionary numbers alternative pronunciations: the, the(2).
    return re.sub(r"\(\d+\)$", "", word)


def align_rows(rows: Sequence[ManifestRow], *, num_workers: int) -> tuple[dict[str, list[Segment]], list[Unaligned]]:
    """Align each row's text; returns the segments by id, in the order of ``rows``, and the rows that do not align."""
    results = map_parallel(_align_row, rows, num_workers=num_workers, title="aligning")

    aligned = {row.id: result for row, result in zip(rows, results, strict=True) if not isinstance(result, Unaligned)}

    return aligned, [result for result in results if isinstance(result, Unaligned)]


@cache
def _process_aligner() -> Aligner:
    return Aligner()


def _align_row(row: ManifestRow) -> list[Segment] | Unaligned:
    try:
        return _process_aligner()(read_audio(row.path, sample_rate=_SAMPLE_RATE), row.text)
    except (AlignmentError, AudioError) as ex:
        return Unaligned(row.id, str(ex))


def write_unaligned(path: Path, unaligned: Iterable[Unaligned]) -> None:
    """Write columns id, reason."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            "id\treason\n" + "".join(f"{row.id}\t{row.reason}\n" for row in unaligned), encoding="utf-8"
        )


def main(arguments: Sequence[str]) -> None:
    """Align the English rows of a manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.align",
        description="Find the phones of English recordings from their texts. Rows in another language, or without "
        "text, are left out; rows that cannot be aligned are listed in OUT.unaligned.tsv.",
        epilog="example: python -m recipes.corpus.align clips.tsv clips.alignment.tsv",
    )

    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="rows with text; no language counts as English")
    parser.add_argument("out", metavar="OUT.tsv", type=Path, help="gets the columns id, start, end, phone, word")
    parser.add_argument("--workers", type=int, default=default_num_workers(), metavar="N", help="processes")

    options = parser.parse_args(arguments)

    rows = [row for row in read_manifest(options.manifest) if row.text and row.language in ("", "en")]

    if not rows:
        raise CorpusError(f"{options.manifest}: has no English row with text. Give texts with --text-from.")

    alignment, unaligned = align_rows(rows, num_workers=max(1, options.workers))

    write_alignment(options.out, alignment)

    write_unaligned(options.out.with_suffix(".unaligned.tsv"), unaligned)

    num_phones = sum(segment.phone != SILENCE_PHONE for segments in alignment.values() for segment in segments)

    message = f"wrote {options.out}: {len(alignment)} of {len(rows)} recordings, {num_phones} phones"

    if unaligned:
        message += f"; not aligned: {abbreviate([row.id for row in unaligned])}"

    Console().print(message, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)

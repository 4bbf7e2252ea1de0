"""Word, character and token errors of a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import editdistance


@final
@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """Insertions, deletions and substitutions that turn a reference into a hypothesis, and the reference's length.

    Error rates are sums of errors by sums of lengths, over all utterances.
    """

    word_errors: int

    num_words: int

    character_errors: int

    num_characters: int


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Return the smallest numbers of errors; words are what white space separates, one space counts as a character."""
    reference_words, hypothesis_words = reference.split(), hypothesis.split()
    reference_text, hypothesis_text = " ".join(reference_words), " ".join(hypothesis_words)
    return ErrorCounts(
        word_errors=editdistance.eval(reference_words, hypothesis_words),
        num_words=len(reference_words),
        character_errors=editdistance.eval(reference_text, hypothesis_text),
        num_characters=len(reference_text),
    )


def count_token_errors(reference: Sequence[int], hypothesis: Sequence[int]) -> int:
    """Return the smallest number of insertions, deletions and substitutions between two sequences, of phones say."""
    return int(editdistance.eval(list(reference), list(hypothesis)))

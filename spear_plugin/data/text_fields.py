"""Fields of text as arrays: where they begin and end in a buffer of bytes, their numbers and their hashes.

A loop over ten million lines takes minutes, the same over columns seconds.

Letters: B bytes, L lines, C columns, F fields.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]

Places: TypeAlias = NDArray[np.int64]
"""Offsets into a buffer of bytes."""

Hashes: TypeAlias = NDArray[np.uint64]

_TAB, _LINE_FEED, _CARRIAGE_RETURN, _ZERO = b"\t\n\r0"

_WORD: Final = 8

_MAX_DIGITS: Final = 18
"""So many always fit into 64 bits."""

_PLAIN_MULTIPLIER: Final = 0x9E37_79B9_7F4A_7C15
_MULTIPLIER: Final = np.uint64(_PLAIN_MULTIPLIER)

_WORD_MASK: Final = (1 << 64) - 1

_WORD_MASKS: Final = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)
"""Keep the first bytes of a little-endian word."""


def split_lines(data: Bytes, num_columns: int) -> tuple[Places, Places] | None:
    """Return where each field begins and ends, both (L, C), or None if a line has another number of fields.

    :param data: (B,) whole lines, each with its line feed.
    """
    (separators,) = np.nonzero((data == _TAB) | (data == _LINE_FEED))
    (line_ends,) = np.nonzero(data == _LINE_FEED)
    if (
        separators.size != line_ends.size * num_columns
        or (separators[num_columns - 1 :: num_columns] != line_ends).any()
    ):
        return None
    starts = np.concatenate([np.zeros(1, dtype=np.int64), separators[:-1] + 1]).reshape(-1, num_columns)
    ends = separators.reshape(-1, num_columns)
    last = ends[:, -1]
    while (trailing := (data[last - 1] == _CARRIAGE_RETURN) & (last > starts[:, -1])).any():
        last -= trailing
    return starts, ends


def parse_counts(data: Bytes, starts: Places, ends: Places) -> NDArray[np.int64] | None:
    """Return the positive numbers (F,) in fields, or None if a field holds something else or over 18 digits."""
    lengths = ends - starts
    if np.min(lengths, initial=1) < 1 or (width := int(np.max(lengths, initial=0))) > _MAX_DIGITS:
        return None
    values = np.zeros(starts.size, dtype=np.int64)
    for place in range(width):
        inside = place < lengths
        digits = data[np.where(inside, starts + place, starts)] - np.uint8(_ZERO)  # others wrap around, above 9
        if (digits[inside] > 9).any():
            return None
        values = np.where(inside, values * 10 + digits, values)
    return None if (values == 0).any() else values


def fields_equal(data: Bytes, starts: Places, ends: Places, text: bytes) -> NDArray[np.bool_]:
    """Return (F,), which fields are ``text``."""
    equal: NDArray[np.bool_] = ends - starts == len(text)
    for place, byte in enumerate(text):
        equal &= data[np.where(equal, starts + place, 0)] == byte
    return equal


def hash_fields(data: Bytes, starts: Places, ends: Places) -> Hashes:
    """Return 64 bits (F,) for each field, the same on all machines and in all processes."""
    padded = np.concatenate([data, np.zeros(_WORD, dtype=np.uint8)])
    words: Hashes = np.ndarray((data.size + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
    lengths = ends - starts
    hashes = lengths.astype(np.uint64) * _MULTIPLIER
    for place in range(0, int(np.max(lengths, initial=0)), _WORD):
        left = lengths - place
        inside = left > 0
        word = words[np.where(inside, starts + place, 0)] & _WORD_MASKS[left.clip(0, _WORD)]
        mixed = (hashes ^ word) * _MULTIPLIER
        hashes = np.where(inside, mixed ^ (mixed >> np.uint64(32)), hashes)
    return hashes


def hash_text(text: str) -> np.uint64:
    """Return the hash that :func:`hash_fields` gives a field; for one, integers are faster than arrays."""
    data = text.encode()
    hash_ = len(data) * _PLAIN_MULTIPLIER & _WORD_MASK
    for place in range(0, len(data), _WORD):
        word = int.from_bytes(data[place : place + _WORD], "little")
        mixed = (hash_ ^ word) * _PLAIN_MULTIPLIER & _WORD_MASK
        hash_ = mixed ^ mixed >> 32
    return np.uint64(hash_)


def join_fields(data: Bytes, starts: Places, ends: Places) -> Bytes:
    """Return the fields (L, C) as lines again: a tab behind each, behind the last of a line a line feed."""
    sizes = (ends - starts + 1).ravel()
    last = np.cumsum(sizes)
    places = np.arange(int(sizes.sum())) + np.repeat(starts.ravel() - (last - sizes), sizes)
    joined: Bytes = data[places.clip(max=data.size - 1)]
    joined[last - 1] = _TAB
    joined[last[starts.shape[1] - 1 :: starts.shape[1]] - 1] = _LINE_FEED
    return joined

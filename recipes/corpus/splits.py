"""Splits that depend on nothing but a key: the same on every machine, and stable when files are added or removed.

A key is hashed to a place in [0, 1); ranges of places are the splits of the packaged corpora::

    0.00                                  0.75        0.80        0.85            1.00
    | probe train                         | probe valid           | probe test    |
    | pre-training train                              | pt. valid | held out      |

so that pre-training never sees the probes' test clips, nor learns from what it is validated on. Corpora without a probe
need no test range: they train on it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from spear_plugin.data.manifest import ManifestRow

Split: TypeAlias = Literal["train", "valid", "test"]

_PROBE_VALID_START: Final = 0.75
_PRETRAIN_VALID_START: Final = 0.80
_TEST_START: Final = 0.85

_HASH_BYTES: Final = 8
_NUM_PLACES: Final = float(1 << (8 * _HASH_BYTES))


def place(key: str) -> float:
    """Return a number in [0, 1), uniform over keys (SHA-256)."""
    digest = hashlib.sha256(key.encode()).digest()

    return int.from_bytes(digest[:_HASH_BYTES], "big") / _NUM_PLACES


def split_key(row: ManifestRow) -> str:
    """Return the normalised text or, without one, the last part of the id up to a ``#``.

    Recordings of one sentence, copies of one sound effect in several folders, and pieces (``id#N``) of one recording
    share their key and so their split.
    """
    return normalize_text(row.text) or row.id.rsplit("/", maxsplit=1)[-1].split("#")[0]


def normalize_text(text: str) -> str:
    """Return the text in lower case with everything but letters, digits and apostrophes made a single space."""
    return re.sub(r"[^\w']+|_", " ", text.lower()).strip()


def probe_split(row: ManifestRow) -> Split:
    """Return the split of a row in the probe tasks."""
    where = place(split_key(row))

    if where < _PROBE_VALID_START:
        return "train"

    return "valid" if where < _TEST_START else "test"


def pretrain_split(row: ManifestRow, *, hold_out_test: bool) -> Split:
    """Return the split of a row in pre-training; ``test`` (only with ``hold_out_test``) means: in no manifest."""
    where = place(split_key(row))

    if _PRETRAIN_VALID_START <= where < _TEST_START:
        return "valid"

    return "test" if where >= _TEST_START and hold_out_test else "train"


def assign_folds(labels: Mapping[str, str], num_folds: int) -> dict[str, int]:
    """Spread ids over folds, each class (``labels``: id to class) as evenly as possible, by hash."""
    by_class: dict[str, list[str]] = defaultdict(list)

    for key in sorted(labels, key=place):
        by_class[labels[key]].append(key)

    # Classes follow on one another, so that the remainders do not all fall into the first folds.
    ordered = [key for label in sorted(by_class) for key in by_class[label]]

    return {key: position % num_folds for position, key in enumerate(ordered)}

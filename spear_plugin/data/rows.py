"""Which rows of a corpus a reader uses, and how often; on metadata only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from spear_plugin.data.files import abbreviate
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.options import ClassBalance, ReaderOptions, SpearDatasetError
from spear_plugin.data.reading import CorpusView
from spear_plugin.data.segments import SegmentTable


def check_rows(name: str, rows: Sequence[ManifestRow], options: ReaderOptions) -> NDArray[np.int64]:
    """Return the indices of rows that ``options.row_check`` objects to, and log them by reason.

    :raises SpearDatasetError: If they are more than ``max_skipped``, or all.
    """
    if options.row_check is None:
        return np.empty(0, dtype=np.int64)

    ids_of_reason: dict[str, list[str]] = defaultdict(list)
    skipped = []

    for index, row in enumerate(rows):
        if (reason := options.row_check(row)) is not None:
            ids_of_reason[reason].append(row.id)
            skipped.append(index)

    for reason, ids in ids_of_reason.items():
        log.warning("Corpus {}: skipping {} of {} rows, {}: {}", name, len(ids), len(rows), reason, abbreviate(ids))

    if len(skipped) > min(options.max_skipped, len(rows) - 1):
        reasons = "; ".join(f"{len(ids)} {reason}, as {abbreviate(ids, 1)}" for reason, ids in ids_of_reason.items())
        raise SpearDatasetError(
            f"Corpus {name}: {len(skipped)} of {len(rows)} rows cannot be used, more than `max_skipped` "
            f"({options.max_skipped}) or all of them: {reasons}. Correct the manifest, or raise the limit."
        )

    return np.array(skipped, dtype=np.int64)


def split_by_class(corpora: Sequence[CorpusView], balance: ClassBalance) -> list[CorpusView]:
    """Return a view for each class of each corpus, weighted as ``balance`` says; a row may be in several.

    The weight of a corpus stays what it is. Rows without a class are left out.

    :raises SpearDatasetError: If no row of a corpus has a class.
    """
    return [view for corpus in corpora for view in _split(corpus, balance)]


def _split(corpus: CorpusView, balance: ClassBalance) -> list[CorpusView]:
    segments_of_class: dict[str, list[int]] = defaultdict(list)

    for segment, row in enumerate(corpus.segments.rows):
        for label in corpus.rows[row].labels:
            segments_of_class[label].append(segment)

    if not segments_of_class:
        raise SpearDatasetError(f"Corpus {corpus.name}: rows are to be drawn by class, but none has a label.")

    shares = {label: len(items) / (len(items) + balance.smoothing) for label, items in segments_of_class.items()}
    total = sum(shares.values())

    return [
        replace(
            corpus,
            segments=_select(corpus.segments, segments_of_class[label]),
            weight=corpus.weight * shares[label] / total,
        )
        for label in sorted(segments_of_class)
    ]


def _select(segments: SegmentTable, indices: Sequence[int]) -> SegmentTable:
    chosen = np.asarray(indices, dtype=np.int64)

    return replace(
        segments, rows=segments.rows[chosen], starts=segments.starts[chosen], lengths=segments.lengths[chosen]
    )

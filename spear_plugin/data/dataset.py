"""The dataset family ``spear``: corpora by manifest and code stores, opened with all checks that need no audio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.logging import log
from numpy.typing import NDArray

from spear_plugin.data.audio import resampled_length
from spear_plugin.data.batch import SpearBatch
from spear_plugin.data.codes import CodeStore, CodeStoreIdentity
from spear_plugin.data.files import abbreviate
from spear_plugin.data.manifest import ManifestRow, ManifestTable, read_manifest, rows_digest
from spear_plugin.data.options import ReaderOptions, SpearDatasetError, StreamOptions
from spear_plugin.data.pipeline import create_pipeline_reader
from spear_plugin.data.reading import CorpusView
from spear_plugin.data.rows import check_rows, split_by_class
from spear_plugin.data.segments import SegmentTable, cut_segments

SPEAR_DATASET: Final = "spear"

_NUM_NAMED: Final = 3


@dataclass(kw_only=True)
class CorpusConfig:
    name: str = ""
    """For messages and metrics."""

    manifest: Path = Path()

    codes: dict[str, Path] = field(default_factory=dict)
    """Folder of the code store of each target stream; one made for a larger manifest will do."""

    weight: float | None = None
    """Share of the audio seconds in training, up to a factor. None: its seconds; then all corpora must say None."""


@dataclass(kw_only=True)
class SpearDatasetConfig:
    """Any number of corpora of both domains; a row's domain stands in its manifest."""

    train: list[CorpusConfig] = field(default_factory=list)

    valid: list[CorpusConfig] = field(default_factory=list)


@final
@dataclass(frozen=True, kw_only=True)
class _Corpus:
    name: str
    rows: ManifestTable
    stores: Mapping[str, CodeStore]
    weight: float | None


def open_spear_dataset(config: SpearDatasetConfig) -> SpearDataset:
    """Open the manifests and code stores of all splits.

    :raises ManifestError: If a manifest is missing or invalid.
    :raises CodeStoreError: If a code store is missing, unfinished or damaged.
    :raises SpearDatasetError: If stores of one stream have different teachers or quantizers.
    """
    corpora = {"train": _open_corpora(config.train), "valid": _open_corpora(config.valid)}
    _check_same_targets([corpus for split in corpora.values() for corpus in split])
    return SpearDataset(corpora)


@final
class SpearDataset:
    """Corpora of the family ``spear``, by split."""

    def __init__(self, corpora: Mapping[str, Sequence[_Corpus]]) -> None:
        self._corpora = corpora

    @property
    def identities(self) -> dict[str, CodeStoreIdentity]:
        """The teacher and quantizer of each target stream; opening made sure that all corpora agree in them."""
        corpora = [corpus for split in self._corpora.values() for corpus in split]

        return {stream: store.identity for stream, store in _iterate_stores(corpora)}

    def rows(self, split: str) -> Iterator[ManifestRow]:
        """Yield the rows of all corpora of a split, usable or not."""
        for corpus in self._corpora[split]:
            yield from corpus.rows

    def create_reader(self, split: str, gangs: Gangs, *, options: ReaderOptions) -> DataReader[SpearBatch]:
        """Return a reader of batches for the data-parallel rank.

        With ``options.shuffle`` it has no end and resumes exactly from its state; without, it reads each example once.

        :raises SpearDatasetError: If the split is unknown or has no usable row, a required code store is missing or
            does not fit its stream, codes of more than ``max_skipped`` rows are missing, or the options contradict.
        """
        if split not in self._corpora:
            raise SpearDatasetError(f"`split` must be one of {', '.join(self._corpora)}, but is '{split}'.")

        corpora = self._corpora[split]
        if not corpora:
            raise SpearDatasetError(f"The dataset has no corpora in its `{split}` list. Name at least one.")
        segments = [_prepare(corpus, split, options) for corpus in corpora]
        weights = _example_weights(corpora, segments)
        views = [
            CorpusView(name=corpus.name, rows=corpus.rows, segments=table, stores=corpus.stores, weight=weight)
            for corpus, table, weight in zip(corpora, segments, weights, strict=True)
        ]

        if options.balance is not None and options.shuffle:
            views = split_by_class(views, options.balance)

        return create_pipeline_reader(views, gangs, options)


def _open_corpora(configs: Sequence[CorpusConfig]) -> list[_Corpus]:
    names = [config.name for config in configs]

    if len(set(names)) < len(names) or "" in names:
        raise SpearDatasetError(f"`name` of each corpus must be unique and not empty, but the names are {names}.")

    return [
        _Corpus(
            name=config.name,
            rows=read_manifest(config.manifest),
            stores={stream: CodeStore(folder) for stream, folder in config.codes.items()},
            weight=config.weight,
        )
        for config in configs
    ]


def _check_same_targets(corpora: Sequence[_Corpus]) -> None:
    first: dict[str, CodeStore] = {}

    for stream, store in _iterate_stores(corpora):
        other = first.setdefault(stream, store)

        if difference := store.identity.difference(other.identity, ignore=("manifest",)):
            raise SpearDatasetError(
                f"Stream {stream}: {store.folder} and {other.folder} must have the same teacher and quantizer, but the "
                f"first has {difference}. Encode both with the same quantizer."
            )


def _iterate_stores(corpora: Sequence[_Corpus]) -> Iterator[tuple[str, CodeStore]]:
    for corpus in corpora:
        yield from corpus.stores.items()


def _prepare(corpus: _Corpus, split: str, options: ReaderOptions) -> SegmentTable:
    """Return the usable segments of a corpus and say in one line what was left out."""
    unusable = _check_codes(corpus, options)
    unusable[check_rows(corpus.name, corpus.rows, options)] = True
    rate = options.sample_rate
    # Rows that cannot be used count as too short, so that the numbers of the others stay what they are.
    lengths = resampled_length(corpus.rows.num_samples, corpus.rows.sample_rates, rate)
    lengths[unusable] = 0
    num_unusable = np.count_nonzero(unusable)
    segments = cut_segments(
        lengths,
        min_length=max(options.to_samples(options.min_seconds), 1),
        max_length=options.to_samples(options.max_seconds),
        grid=None if options.crop else options.segment_grid(),
    )

    if len(segments) == 0:
        raise SpearDatasetError(
            f"Corpus {corpus.name} ({split}): none of its {len(corpus.rows)} rows is long enough and usable. "
            f"Check `min_seconds` ({options.min_seconds}) and the manifest."
        )

    log.info(
        "Corpus {} ({}): {} rows, {} examples, {:.2f} hours; left out {} rows and {} ends of rows shorter than {} s, "
        "{} rows without codes or of no use.",
        corpus.name,
        split,
        len(corpus.rows),
        len(segments),
        segments.lengths.sum() / rate / 3600,
        segments.num_short_rows - num_unusable,
        segments.num_short_tails,
        options.min_seconds,
        num_unusable,
    )

    return segments


def _check_codes(corpus: _Corpus, options: ReaderOptions) -> NDArray[np.bool_]:
    """Return which rows lack codes of a required stream."""
    missing = np.zeros(len(corpus.rows), dtype=np.bool_)
    for name, stream in options.streams.items():
        wanted = corpus.rows.in_domains(stream.domains)
        if wanted.any():
            missing |= wanted & _lack_codes(corpus, wanted, _get_store(corpus, name, stream))
    if not (num_missing := int(np.count_nonzero(missing))):
        return missing

    names = abbreviate([corpus.rows[int(row)].id for row in np.nonzero(missing)[0][:_NUM_NAMED]], total=num_missing)
    log.warning("Corpus {}: skipping {} rows without codes: {}", corpus.name, num_missing, names)

    if num_missing > options.max_skipped:
        raise SpearDatasetError(
            f"Corpus {corpus.name}: {num_missing} of {len(corpus.rows)} rows have no codes, more than `max_skipped` "
            f"({options.max_skipped}): {names}. Encode the corpus with `recipes.mvq.encode`."
        )

    return missing


def _lack_codes(corpus: _Corpus, wanted: NDArray[np.bool_], store: CodeStore) -> NDArray[np.bool_]:
    # A complete store of this very manifest needs no search.
    if len(store) == len(corpus.rows) and store.identity.manifest == rows_digest(corpus.rows):
        return np.zeros_like(wanted)

    lacking = ~store.has_hashes(corpus.rows.id_hashes)
    if (lacking & wanted).any():
        # A damaged shard would look like missing ids.
        store.verify()
    return lacking


def _get_store(corpus: _Corpus, name: str, stream: StreamOptions) -> CodeStore:
    if (store := corpus.stores.get(name)) is None:
        raise SpearDatasetError(
            f"Corpus {corpus.name}: has no code store for stream {name}, which its rows are trained on. Add it to the "
            f"corpus' `codes`, or give the stream the weight 0 for this domain."
        )
    shapes = [(shape.num_codebooks, shape.codebook_size, shape.frame_rate_hz) for shape in (store.identity, stream)]

    if shapes[0] != shapes[1]:
        has, wanted = (f"{number} codebooks of {size} entries at {rate} Hz" for number, size, rate in shapes)

        raise SpearDatasetError(
            f"{store.folder}: has {has}, but stream {name} of the model has {wanted}. Change the stream or the store."
        )

    return store


def _example_weights(corpora: Sequence[_Corpus], segments: Sequence[SegmentTable]) -> list[float]:
    """Turn shares of seconds into probabilities of examples, up to a factor."""
    weights = [corpus.weight for corpus in corpora if corpus.weight is not None]
    if not weights:
        return [float(len(table)) for table in segments]

    if len(weights) < len(corpora) or min(weights) <= 0.0:
        raise SpearDatasetError(
            f"`weight` must be greater than 0 for all corpora, or None for all, but is "
            f"{ {corpus.name: corpus.weight for corpus in corpora} }."
        )

    return [weight / float(table.lengths.mean()) for weight, table in zip(weights, segments, strict=True)]

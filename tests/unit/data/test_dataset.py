from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.datasets import DataReader, DatasetFamily
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import ValueConverter

from spear_plugin.data.audio import read_audio
from spear_plugin.data.batch import CODE_PADDING, SpearBatch
from spear_plugin.data.codes import CodeStoreError
from spear_plugin.data.dataset import SPEAR_DATASET, CorpusConfig, SpearDataset, SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.manifest import read_manifest, write_manifest
from spear_plugin.data.options import ReaderOptions, SpearDatasetError, StreamOptions
from spear_plugin.data.reading import BatchLoader
from tests.common import assert_equal
from tests.unit.data.common import STREAMS, expected_codes, make_corpus, make_gangs, make_store, write_noise

OPTIONS = ReaderOptions(max_batch_seconds=4.0, min_seconds=0.2, max_seconds=2.0, num_buckets=3, streams=STREAMS)


def open_reader(
    *corpora: CorpusConfig, rank: int = 0, size: int = 1, options: ReaderOptions = OPTIONS
) -> DataReader[SpearBatch]:
    split = "train" if options.shuffle else "valid"
    config = SpearDatasetConfig()
    setattr(config, split, list(corpora))
    dataset: SpearDataset = open_spear_dataset(config)

    return dataset.create_reader(split, make_gangs(rank, size), options=options)


def read_batches(reader: DataReader[SpearBatch], num_steps: int | None = None) -> list[SpearBatch]:
    return [batch for batches in islice(reader, num_steps) for batch in batches]


def examples(batches: list[SpearBatch]) -> Iterator[tuple[str, float]]:
    for batch in batches:
        yield from zip(batch.ids, batch.starts, strict=True)


def assert_same_batches(batches: list[SpearBatch], expected: list[SpearBatch]) -> None:
    assert list(examples(batches)) == list(examples(expected))

    for a, b in zip(batches, expected, strict=True):
        assert_equal(a.waveforms, b.waveforms)
        assert_equal(a.lengths, b.lengths)
        assert a.codes.keys() == b.codes.keys()

        for stream, codes in a.codes.items():
            assert_equal(codes, b.codes[stream])


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    durations = np.random.default_rng(0).uniform(0.3, 2.0, 30)

    return make_corpus(tmp_path_factory.mktemp("speech"), "speech", durations.tolist(), weight=0.7)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    return make_corpus(tmp_path_factory.mktemp("audio"), "audio", [0.5, 1.0, 1.7, 5.1], domain="audio", weight=0.3)


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_training_resumes_exactly(speech: CorpusConfig, audio: CorpusConfig, rank: int, size: int) -> None:
    options = replace(OPTIONS, num_accumulate=2)
    reader = open_reader(speech, audio, rank=rank, size=size, options=options)
    read_batches(reader, 7)
    file = io.BytesIO()
    torch.save(reader.state_dict(), file)
    expected = read_batches(reader, 20)
    assert {"speech0", "audio0"} <= {id_ for batch in expected for id_ in batch.ids}

    resumed = open_reader(speech, audio, rank=rank, size=size, options=options)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=False))

    assert_same_batches(read_batches(resumed, 20), expected)


def test_training_is_a_function_of_the_seed_not_of_the_number_of_threads(
    speech: CorpusConfig, audio: CorpusConfig
) -> None:
    first = read_batches(open_reader(speech, audio), 10)
    again = read_batches(open_reader(speech, audio, options=replace(OPTIONS, num_parallel=4, num_prefetch=1)), 10)
    other = read_batches(open_reader(speech, audio, options=replace(OPTIONS, seed=3)), 10)

    assert_same_batches(again, first)
    assert list(examples(other)) != list(examples(first))


def test_two_ranks_read_different_examples_of_like_lengths(speech: CorpusConfig) -> None:
    options = replace(OPTIONS, max_batch_seconds=2.0, num_buckets=10, streams={})
    ranks = [read_batches(open_reader(speech, rank=rank, size=2, options=options), 60) for rank in (0, 1)]
    lengths = np.array([[batch.waveforms.shape[1] for batch in batches] for batches in ranks])

    assert {id_ for batches in ranks for batch in batches for id_ in batch.ids} == {f"speech{n}" for n in range(30)}
    assert all(a.num_examples == b.num_examples for a, b in zip(*ranks, strict=True))
    assert np.mean(np.abs(lengths[0] - lengths[1])) < 0.5 * np.mean(np.abs(lengths[0] - lengths[1, ::-1]))


def test_a_batch_without_usable_files_is_replaced_by_that_of_another_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(tmp_path, "half", [1.0] * 4)
    rows = read_manifest(corpus.manifest)
    rows[1].path.unlink()
    options = replace(OPTIONS, max_batch_seconds=1.0, max_seconds=1.0, streams={})

    with caplog.at_level(logging.WARNING, "fairseq2"):
        ranks = [
            read_batches(open_reader(corpus, rank=rank, size=2, options=replace(options, max_batch_seconds=1.0)), 40)
            for rank in (0, 1)
        ]

    stand_ins = [(a.ids, b.ids) for a, b in zip(*ranks, strict=True) if a.ids == b.ids]
    assert 5 < len(stand_ins) < 40
    assert "the batch of another process takes its place" in caplog.text


def test_a_run_goes_on_with_another_number_of_ranks(speech: CorpusConfig, audio: CorpusConfig) -> None:
    readers = [open_reader(speech, audio, rank=rank, size=2) for rank in (0, 1)]
    before = [batch for reader in readers for batch in read_batches(reader, 3)]
    states = [reader.state_dict() for reader in readers]
    assert str(states[0]) == str(states[1])

    single = open_reader(speech, audio)
    single.load_state_dict(states[0])
    after = read_batches(single, 8)

    ids = [(id_, start) for batch in before + after for id_, start in zip(batch.ids, batch.starts, strict=True)]
    assert len(after) == 8
    # A corpus of four files has several epochs in a window, one of thirty has not.
    assert len({id_ for id_, _ in ids if id_.startswith("speech")}) > 15


def test_a_corpus_smaller_than_the_number_of_ranks_feeds_all_ranks(audio: CorpusConfig) -> None:
    for rank in (0, 7):
        batches = read_batches(open_reader(audio, rank=rank, size=8), 12)

        assert {"audio0", "audio1", "audio2", "audio3"} == {id_ for batch in batches for id_ in batch.ids}


def test_weights_are_shares_of_seconds(
    speech: CorpusConfig, audio: CorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchLoader, "_read_waveform", lambda _, __, ___, length: np.zeros(length, dtype=np.float32))
    # Rows of audio are twice as long on average, so shares of rows would be far off.
    options = replace(OPTIONS, streams={}, max_seconds=6.0, max_batch_seconds=12.0)
    seconds = [sum(row.duration for row in read_manifest(corpus.manifest)) for corpus in (speech, audio)]
    unweighted = [replace(speech, weight=None), replace(audio, weight=None)]

    for corpora, share in [((speech, audio), 0.3), (unweighted, seconds[1] / sum(seconds))]:
        batches = read_batches(open_reader(*corpora, options=options), 800)
        audio_seconds = sum((batch.lengths.double() @ batch.domains.double()).item() for batch in batches) / 16_000

        assert audio_seconds / sum(batch.seconds for batch in batches) == pytest.approx(share, abs=0.03)


def test_batches_are_never_longer_than_allowed_and_hold_like_lengths(speech: CorpusConfig, audio: CorpusConfig) -> None:
    batches = read_batches(open_reader(speech, audio, options=replace(OPTIONS, max_batch_seconds=8.0)), 40)

    assert all(batch.waveforms.numel() <= 8.0 * 16_000 for batch in batches)
    assert any(batch.num_examples > 3 for batch in batches)
    assert sum(batch.num_elements for batch in batches) > 0.75 * sum(batch.waveforms.numel() for batch in batches)


def test_long_rows_are_cut_without_loss_and_codes_stay_aligned(audio: CorpusConfig) -> None:
    options = replace(OPTIONS, max_seconds=1.61, shuffle=False)
    batches = read_batches(open_reader(audio, options=options))
    paths = {row.id: row.path for row in read_manifest(audio.manifest)}
    seen: dict[str, list[tuple[float, int]]] = {}

    for batch in batches:
        assert batch.codes["speech"].shape == (batch.num_examples, batch.waveforms.shape[1] // 320, 4)
        assert batch.codes["audio"].shape == (batch.num_examples, batch.waveforms.shape[1] // 640, 2)

        for n, (id_, start) in enumerate(examples([batch])):
            whole, length, first = read_audio(paths[id_]), batch.seq_lens[n], round(start * 16_000)
            seen.setdefault(id_, []).append((first, length))
            assert_equal(batch.waveforms[n, :length], torch.from_numpy(whole[first : first + length]))
            assert not batch.waveforms[n, length:].any()

            for stream, options_ in STREAMS.items():
                hop = round(16_000 / options_.frame_rate_hz)
                # One frame is missing at the end of the row, none within.
                num_frames = min(length // hop, whole.size // hop - 1 - first // hop)
                codes = expected_codes(first // hop, num_frames, options_.num_codebooks).astype(np.int16)
                assert_equal(batch.codes[stream][n, :num_frames], torch.from_numpy(codes))
                assert (batch.codes[stream][n, num_frames:] == CODE_PADDING).all()

    assert {id_: sum(length for _, length in parts) for id_, parts in seen.items()} == {
        "audio0": 8_000,
        "audio1": 16_000,
        "audio2": 25_600,  # the last 0.1 s is shorter than the minimum
        "audio3": 81_600,
    }


def test_streams_that_a_domain_lacks_are_padding(speech: CorpusConfig, audio: CorpusConfig) -> None:
    batches = read_batches(open_reader(speech, audio), 20)

    for batch in batches:
        for domain, codes in zip(batch.domains.tolist(), batch.codes["audio"], strict=True):
            assert bool((codes != CODE_PADDING).any()) == (domain == 1)

        assert (batch.codes["speech"] != CODE_PADDING).any(dim=2).any(dim=1).all()
        assert batch.codes["speech"].dtype == torch.int16


@pytest.mark.parametrize("size", [1, 3])
def test_validation_reads_each_example_once(speech: CorpusConfig, audio: CorpusConfig, size: int) -> None:
    options = replace(OPTIONS, shuffle=False)
    read = [
        example
        for rank in range(size)
        for example in examples(read_batches(open_reader(speech, audio, rank=rank, size=size, options=options)))
    ]

    expected = {(f"speech{n}", 0.0) for n in range(30)} | {(f"audio{n}", 0.0) for n in range(4)}
    assert len(read) == 36
    assert set(read) == expected | {("audio3", 2.0), ("audio3", 4.0)}


def test_a_validation_reader_can_be_used_again(speech: CorpusConfig) -> None:
    reader = open_reader(speech, options=replace(OPTIONS, shuffle=False))
    first = read_batches(reader)
    reader.reset()

    assert_same_batches(read_batches(reader), first)


def make_bad_corpus(folder: Path) -> CorpusConfig:
    """Rows 0 to 4 are bad: missing, cut off, longer than the manifest says, without codes, with codes of another."""
    corpus = make_corpus(folder, "bad", [1.0] * 10)
    rows = read_manifest(corpus.manifest)
    rows[0].path.unlink()
    rows[1].path.write_bytes(rows[1].path.read_bytes()[:5000])
    write_noise(rows[2].path, 17_000)
    (folder / "bad" / "speech" / "complete.json").unlink()
    rows_with_codes = [*rows[:3], replace(rows[4], num_samples=22_000), *rows[5:]]
    codes = make_store(folder / "codes", corpus.manifest, rows_with_codes, STREAMS["speech"])

    return replace(corpus, codes={"speech": codes})


@pytest.mark.parametrize("shuffle", [True, False])
def test_unusable_examples_are_skipped_counted_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shuffle: bool
) -> None:
    corpus = make_bad_corpus(tmp_path)

    with caplog.at_level(logging.WARNING, "fairseq2"):
        reader = open_reader(corpus, options=replace(OPTIONS, shuffle=shuffle, max_batch_seconds=5.0))
        batches = read_batches(reader, 30 if shuffle else None)

    assert {id_ for batch in batches for id_ in batch.ids} == {f"bad{n}" for n in range(5, 10)}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 5
    assert sum("skipping 1 rows without codes: 'bad3'" in message for message in messages) == 1

    for id_, reason in {
        "bad0": "there is no such file",
        "bad1": "is cut off or damaged",
        "bad2": "has 1.062 s, but the manifest says 1.000 s",
        "bad4": "has 67 code frames of stream speech for 50 of audio",
    }.items():
        assert sum(f"Skipping '{id_}' of corpus bad" in message and reason in message for message in messages) == 1

    num_skipped = sum(batch.num_skipped for batch in batches)
    assert num_skipped > 20 if shuffle else num_skipped == 4


def test_more_unusable_examples_than_allowed_are_an_error(tmp_path: Path) -> None:
    corpus = make_bad_corpus(tmp_path)

    assert read_batches(open_reader(corpus, options=replace(OPTIONS, max_skipped=4)), 20)

    with pytest.raises(SpearDatasetError, match=r"4 of 9 rows could not be read, more than `max_skipped` \(3\)"):
        read_batches(open_reader(corpus, options=replace(OPTIONS, max_skipped=3)), 20)

    with pytest.raises(SpearDatasetError, match=r"1 of 10 rows have no codes, more than `max_skipped` \(0\): 'bad3'"):
        open_reader(corpus, options=replace(OPTIONS, max_skipped=0))


def test_a_corpus_without_any_readable_file_is_an_error_not_an_endless_loop(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, "gone", [1.0] * 3)

    for row in read_manifest(corpus.manifest):
        row.path.unlink()

    with pytest.raises(SpearDatasetError, match="3 of 3 rows could not be read"):
        read_batches(open_reader(corpus), 1)


def test_short_rows_are_left_out_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make_corpus(tmp_path, "short", [0.1, 0.15, 1.0, 2.1])

    with caplog.at_level(logging.INFO, "fairseq2"):
        batches = read_batches(open_reader(corpus, options=replace(OPTIONS, shuffle=False)))

    assert sorted(examples(batches)) == [("short2", 0.0), ("short3", 0.0)]
    (line,) = [record.getMessage() for record in caplog.records if "Corpus short" in record.getMessage()]
    assert "4 rows, 2 examples" in line
    assert "left out 2 rows and 1 ends of rows shorter than 0.2 s, 0 rows without codes" in line


def test_a_damaged_id_is_told_from_a_missing_one(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, "speech", [1.0] * 3)
    write_manifest(corpus.manifest, read_manifest(corpus.manifest)[:2])  # so that ids are searched
    shard = corpus.codes["speech"] / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"speech1", b"speechX"))

    with pytest.raises(CodeStoreError, match=r"shard-00000.arrow: the shard is damaged: its checksum does not match"):
        open_reader(corpus)


def test_a_store_of_a_larger_manifest_will_do(speech: CorpusConfig, tmp_path: Path) -> None:
    rows = read_manifest(speech.manifest)[10:20]
    write_manifest(tmp_path / "part.tsv", rows)
    corpus = replace(speech, manifest=tmp_path / "part.tsv")

    batches = read_batches(open_reader(corpus, options=replace(OPTIONS, shuffle=False)))

    assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted(row.id for row in rows)


def test_stores_of_different_quantizers_never_meet_in_a_stream(speech: CorpusConfig, tmp_path: Path) -> None:
    rows = read_manifest(speech.manifest)
    other = make_store(tmp_path / "other", speech.manifest, rows, STREAMS["speech"], quantizer="p")
    config = SpearDatasetConfig(train=[speech], valid=[replace(speech, codes={"speech": other})])

    with pytest.raises(
        SpearDatasetError, match=r"Stream speech: .*other and .*speech must have the same .* quantizer: p"
    ):
        open_spear_dataset(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": {"hubert": STREAMS["speech"]}}, r"Corpus speech: has no code store for stream hubert"),
        (
            {"streams": {"speech": StreamOptions(num_codebooks=8, frame_rate_hz=50.0)}},
            r"has 4 codebooks of 256 entries at 50.0 Hz, but stream speech of the model has 8 codebooks of 256 entries",
        ),
        ({"min_seconds": 9.0}, r"Corpus speech \(train\): none of its 30 rows is long enough"),
        (
            {"max_batch_seconds": 1.0},
            r"`max_batch_seconds` must be at least the longest example \(\d\.\d\d s\), but is 1.0",
        ),
        ({"max_seconds": 0.03}, r"frame rates .* meet only every 0.04 s, so rows cannot be cut"),
    ],
)
def test_options_that_do_not_fit_give_one_line(speech: CorpusConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpearDatasetError, match=message) as info:
        open_reader(speech, options=replace(OPTIONS, **changes))

    assert "\n" not in str(info.value)


def test_wrong_corpora_give_one_line(speech: CorpusConfig, audio: CorpusConfig) -> None:
    with pytest.raises(SpearDatasetError, match=r"`weight` must be .* for all corpora, or None for all"):
        open_reader(speech, replace(audio, weight=None))

    with pytest.raises(SpearDatasetError, match=r"`name` of each corpus must be unique"):
        open_reader(speech, speech)

    dataset = open_spear_dataset(SpearDatasetConfig(train=[speech]))

    with pytest.raises(SpearDatasetError, match="no corpora in its `valid` list"):
        dataset.create_reader("valid", make_gangs(), options=OPTIONS)

    with pytest.raises(SpearDatasetError, match="`split` must be one of train, valid, but is 'test'"):
        dataset.create_reader("test", make_gangs(), options=OPTIONS)


def test_the_family_is_registered_and_its_config_is_plain_yaml(speech: CorpusConfig) -> None:
    resolver = get_dependency_resolver()
    family = resolver.resolve(DatasetFamily, key=SPEAR_DATASET)  # type: ignore[type-abstract]
    yaml = {
        "train": [{"name": "s", "manifest": str(speech.manifest), "codes": {"speech": str(speech.codes["speech"])}}]
    }
    config = resolver.resolve(ValueConverter).structure(yaml, family.config_kls)  # type: ignore[type-abstract]

    assert config == SpearDatasetConfig(train=[replace(speech, name="s", weight=None)])
    assert isinstance(family.open_custom_dataset(config), SpearDataset)

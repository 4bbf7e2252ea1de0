"""Mixing as part of the reader: what a resume, threads, ranks and epochs change and what they do not."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_plugin.data.audio import read_audio
from spear_plugin.data.batch import CODE_PADDING, SpearBatch
from spear_plugin.data.dataset import CorpusConfig
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.mixing_options import MixingOptions, NoiseMixingOptions, UtteranceMixingOptions
from spear_plugin.data.options import ReaderOptions, SpearDatasetError
from tests.unit.data.common import STREAMS, make_corpus, write_noise
from tests.unit.data.test_dataset import assert_same_batches, examples, open_reader, read_batches

OPTIONS = ReaderOptions(max_batch_seconds=6.0, min_seconds=0.2, max_seconds=2.0, num_buckets=3, streams=STREAMS)
MODES = ["noise", "clean", "mixed"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusConfig, CorpusConfig]:
    folder = tmp_path_factory.mktemp("corpora")
    durations = np.random.default_rng(0).uniform(0.3, 1.5, 16)

    return (
        make_corpus(folder, "speech", durations.tolist(), weight=0.7),
        make_corpus(folder, "audio", [0.5, 1.0, 1.3, 2.7], domain="audio", weight=0.3),
    )


@pytest.fixture(scope="module")
def noise_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_noise(tmp_path_factory.mktemp("noise"))


def make_noise(folder: Path) -> Path:
    rows = []

    for number, num_samples in enumerate([4_000, 40_000, 64_000]):
        path = folder / f"noise{number}.wav"
        write_noise(path, num_samples, seed=number + 100)
        rows.append(ManifestRow(id=path.stem, path=path, num_samples=num_samples, sample_rate=16_000, domain="audio"))

    write_manifest(folder / "noise.tsv", rows)

    return folder / "noise.tsv"


def with_mixing(mode: str, manifest: Path) -> ReaderOptions:
    if mode == "noise":
        mixing = MixingOptions(
            speech_probability=0.7,
            noise_probability=1.0,
            audio_probability=0.7,
            noise=NoiseMixingOptions(manifest=manifest, overlap=(0.5, 1.0)),
        )
    else:
        utterance = UtteranceMixingOptions(targets="clean" if mode == "clean" else "mixed", max_delay=0.5)
        mixing = MixingOptions(
            speech_probability=0.9,
            noise_probability=0.2,
            noise=NoiseMixingOptions(manifest=manifest),
            utterance=utterance,
        )

    return replace(OPTIONS, mixing=mixing)


def share_mixed(batches: list[SpearBatch], corpora: tuple[CorpusConfig, ...]) -> float:
    paths = {row.id: row.path for corpus in corpora for row in read_manifest(corpus.manifest)}
    is_mixed = []

    for batch in batches:
        for n, (id_, start) in enumerate(examples([batch])):
            length = min(batch.seq_lens[n], round(OPTIONS.max_seconds * 16_000))
            clean = read_audio(paths[id_])[round(start * 16_000) :][:length]
            is_mixed.append(not np.array_equal(batch.waveforms[n, : clean.size].numpy(), clean))

    return float(np.mean(is_mixed))


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("mode", MODES)
def test_mixing_resumes_exactly(
    corpora: tuple[CorpusConfig, CorpusConfig], noise_manifest: Path, mode: str, rank: int, size: int
) -> None:
    options = replace(with_mixing(mode, noise_manifest), num_accumulate=2)
    reader = open_reader(*corpora, rank=rank, size=size, options=options)
    read_batches(reader, 3)
    file = io.BytesIO()
    torch.save(reader.state_dict(), file)
    expected = read_batches(reader, 8)
    assert share_mixed(expected, corpora) > 0.3

    resumed = open_reader(*corpora, rank=rank, size=size, options=options)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=False))

    assert_same_batches(read_batches(resumed, 8), expected)


@pytest.mark.parametrize("mode", MODES)
def test_threads_change_nothing_and_the_seed_everything(
    corpora: tuple[CorpusConfig, CorpusConfig], noise_manifest: Path, mode: str
) -> None:
    options = with_mixing(mode, noise_manifest)
    first = read_batches(open_reader(*corpora, options=replace(options, num_parallel=1)), 12)
    again = read_batches(open_reader(*corpora, options=replace(options, num_parallel=4, num_prefetch=1)), 12)

    assert_same_batches(again, first)

    # Validation's order does not depend on the seed: only what is mixed does.
    valid = [
        read_batches(open_reader(*corpora, options=replace(options, shuffle=False, seed=seed))) for seed in (2, 2, 3)
    ]
    assert_same_batches(valid[1], valid[0])
    assert list(examples(valid[2])) == list(examples(valid[0]))
    assert any(not torch.equal(a.waveforms, b.waveforms) for a, b in zip(valid[2], valid[0], strict=True))


def added_noise(batches: list[SpearBatch], corpus: CorpusConfig) -> dict[str, list[bytes]]:
    """Return what was added to the first 0.2 s of each example, by id, in the order of reading."""
    clean = {row.id: read_audio(row.path) for row in read_manifest(corpus.manifest)}
    added: dict[str, list[bytes]] = {}

    for batch in batches:
        for n, id_ in enumerate(batch.ids):
            piece = batch.waveforms[n, :3_200].numpy() - clean[id_][:3_200]
            assert piece.any()
            added.setdefault(id_, []).append(piece.tobytes())

    return added


def test_each_rank_and_each_epoch_draws_anew(corpora: tuple[CorpusConfig, CorpusConfig], noise_manifest: Path) -> None:
    noise = NoiseMixingOptions(manifest=noise_manifest)
    mixing = MixingOptions(speech_probability=1.0, noise_probability=1.0, noise=noise)
    # One example per batch.
    options = replace(OPTIONS, max_batch_seconds=2.0, num_buckets=1, streams={}, mixing=mixing)
    ranks = [
        added_noise(read_batches(open_reader(corpora[0], rank=rank, size=2, options=options), 24), corpora[0])
        for rank in (0, 1)
    ]
    pieces = [piece for rank in ranks for added in rank.values() for piece in added]

    assert len(pieces) == 48  # of 16 examples
    assert len(set(pieces)) == 48

    # The draws of an epoch and an example are the same for any number of ranks.
    single = added_noise(read_batches(open_reader(corpora[0], options=options), 48), corpora[0])
    pieces_of_single = {piece for added in single.values() for piece in added}
    assert len(set(pieces) & pieces_of_single) > 5


def test_longer_mixtures_stay_within_the_batch_and_keep_their_codes(
    corpora: tuple[CorpusConfig, CorpusConfig], noise_manifest: Path
) -> None:
    mixing = replace(with_mixing("mixed", noise_manifest).mixing, noise_probability=0.0, speech_probability=1.0)
    options = replace(OPTIONS, mixing=mixing)
    batches = read_batches(open_reader(*corpora, options=options), 40)
    clean_lengths = {row.id: row.num_samples for row in read_manifest(corpora[0].manifest)}
    num_longer = 0

    for batch in batches:
        num_samples = batch.waveforms.shape[1]
        assert batch.waveforms.numel() <= 6.0 * 16_000
        assert batch.codes["speech"].shape == (batch.num_examples, num_samples // 320, 4)
        assert batch.codes["audio"].shape == (batch.num_examples, num_samples // 640, 2)

        for n, id_ in enumerate(batch.ids):
            length, codes = batch.seq_lens[n], batch.codes["speech"][n]
            assert (codes[length // 320 :] == CODE_PADDING).all()
            # One frame short of either signal, a teacher leaves one open where the example ends, and two at the end.
            assert (codes[: length // 320] == CODE_PADDING).any(dim=1).sum() <= 3

            if batch.domains[n] == 0:
                num_longer += length > clean_lengths[id_]
                assert (batch.codes["audio"][n] == CODE_PADDING).all()

    assert num_longer > 20


def test_no_probability_and_no_options_are_the_same(
    corpora: tuple[CorpusConfig, CorpusConfig], noise_manifest: Path
) -> None:
    expected = read_batches(open_reader(*corpora, options=OPTIONS), 10)
    mixing = replace(with_mixing("mixed", noise_manifest).mixing, speech_probability=0.0)

    assert_same_batches(read_batches(open_reader(*corpora, options=replace(OPTIONS, mixing=mixing)), 10), expected)
    assert share_mixed(expected, corpora) == 0.0


def test_unreadable_noise_is_counted_and_does_not_stop_the_reader(
    corpora: tuple[CorpusConfig, CorpusConfig], tmp_path: Path
) -> None:
    manifest = make_noise(tmp_path)
    (tmp_path / "noise1.wav").unlink()
    options = with_mixing("noise", manifest)
    batches = read_batches(open_reader(*corpora, options=options), 12)

    assert sum(batch.num_skipped_noise for batch in batches) > 3
    assert sum(batch.num_skipped for batch in batches) == 0
    assert share_mixed(batches, corpora) > 0.4

    (tmp_path / "noise0.wav").unlink()
    (tmp_path / "noise2.wav").write_bytes(b"RIFF")

    with pytest.raises(SpearDatasetError, match="3 of 3 rows could not be read"):
        read_batches(open_reader(*corpora, options=options), 12)


def test_an_empty_noise_manifest_is_an_error_before_anything_is_read(
    corpora: tuple[CorpusConfig, CorpusConfig], tmp_path: Path
) -> None:
    write_manifest(tmp_path / "empty.tsv", [])

    with pytest.raises(SpearDatasetError, match=r"empty.tsv: the noise manifest has no rows"):
        open_reader(*corpora, options=with_mixing("noise", tmp_path / "empty.tsv"))

"""The training reader: seconds of audio per second of processor time, ours against lhotse's dynamic bucketing.

``python -m benchmarks.data_pipeline [FOLDER]`` reads the audio files below FOLDER (without it, 200 generated flac
files) at 16 kHz, each with 16 codes at 50 Hz, shuffled, in buckets of like lengths, padded to batches of 200 seconds.
All sides work in one process without helpers and take turns; the median of the rounds' ratios counts. Audio seconds
are counted without padding. Besides, our reader reads the same files from tar archives, as they are and unpacked, and
libsndfile alone decodes them, which is the limit for what reads with it. lhotse comes with the extra ``bench``; without
it, its row is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
import torch
from fairseq2.gang import create_fake_gangs
from rich.console import Console
from rich.progress import track

from recipes.corpus.shards import main as write_shards
from spear_plugin.data.audio import AudioError, inspect_audio, resampled_length
from spear_plugin.data.codes import CodeStoreIdentity, CodeStoreWriter
from spear_plugin.data.dataset import CorpusConfig, SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest, write_manifest
from spear_plugin.data.options import ReaderOptions, StreamOptions

SAMPLE_RATE: Final = 16_000
SUFFIXES: Final = (".wav", ".flac", ".ogg", ".opus", ".mp3")
MIN_SECONDS: Final = 1.0
MAX_SECONDS: Final = 30.0
BATCH_SECONDS: Final = 200.0
NUM_BUCKETS: Final = 20
CODES: Final = StreamOptions(num_codebooks=16, frame_rate_hz=50.0)


@dataclass(frozen=True)
class Load:
    """Audio of one batch, in seconds, without and with padding."""

    audio: float
    padded: float


def generate_corpus(folder: Path, num_files: int = 200) -> None:
    """Write flac files of 2 to 20 seconds of noise with the spectrum and the loudness changes of speech."""
    generator = np.random.default_rng(0)
    for index in range(num_files):
        num_samples = int(generator.uniform(2.0, 20.0) * SAMPLE_RATE)
        spectrum = np.fft.rfft(generator.standard_normal(num_samples))
        spectrum /= np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE), 300.0)  # 6 dB per octave
        noise = np.fft.irfft(spectrum, num_samples) * np.abs(np.sin(np.arange(num_samples) / SAMPLE_RATE * 12.0))
        soundfile.write(folder / f"{index}.flac", 0.3 * noise / np.max(np.abs(noise)), SAMPLE_RATE)


def list_rows(folder: Path) -> list[ManifestRow]:
    """Return the readable files of usable length."""
    rows = []
    for path in track(sorted(folder.rglob("*")), "Reading lengths", console=Console(stderr=True), transient=True):
        if path.suffix.lower() in SUFFIXES:
            try:
                info = inspect_audio(path)
            except AudioError:
                continue

            id_ = str(path.relative_to(folder))
            row = ManifestRow(
                id=id_, path=path, num_samples=info.num_samples, sample_rate=info.sample_rate, domain="speech"
            )
            if MIN_SECONDS <= row.duration <= MAX_SECONDS:
                rows.append(row)

    return rows


def make_codes(row: ManifestRow) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the row's codes (T, K)."""
    num_samples = resampled_length(row.num_samples, row.sample_rate, SAMPLE_RATE)
    shape = (int(num_samples * CODES.frame_rate_hz) // SAMPLE_RATE, CODES.num_codebooks)
    return np.random.default_rng(row.num_samples).integers(0, 256, shape, dtype=np.uint8)


def iterate_ours(rows: list[ManifestRow], folder: Path) -> Iterator[Load]:
    """Yield the load of each batch of our reader."""
    folder.mkdir()
    manifest = folder / "train.tsv"
    write_manifest(manifest, rows)
    identity = CodeStoreIdentity(
        teacher="random",
        quantizer="random",
        num_codebooks=CODES.num_codebooks,
        codebook_size=256,
        frame_rate_hz=CODES.frame_rate_hz,
        manifest=manifest_digest(manifest),
    )
    writer = CodeStoreWriter(folder / "codes", identity, 1)
    writer.write_shard(0, [row.id for row in rows], [make_codes(row) for row in rows])
    writer.finish()

    corpus = CorpusConfig(name="benchmark", manifest=manifest, codes={"speech": folder / "codes"})
    options = ReaderOptions(
        max_batch_seconds=BATCH_SECONDS,
        min_seconds=MIN_SECONDS,
        max_seconds=MAX_SECONDS,
        streams={"speech": CODES},
        num_buckets=NUM_BUCKETS,
        num_parallel=1,
        num_prefetch=0,
    )
    gangs = create_fake_gangs(torch.device("cpu"))
    dataset = open_spear_dataset(SpearDatasetConfig(train=[corpus]))
    for batches in dataset.create_reader("train", gangs, options=options):
        for batch in batches:
            yield Load(batch.seconds, batch.waveforms.numel() / SAMPLE_RATE)


def iterate_shards(rows: list[ManifestRow], folder: Path, *options: str) -> Iterator[Load]:
    """Yield the load of each batch of our reader from tar archives."""
    folder.mkdir()
    write_manifest(folder / "loose.tsv", rows)
    with contextlib.redirect_stdout(io.StringIO()):
        write_shards([str(folder / "shards"), str(folder / "loose.tsv"), *options])
    yield from iterate_ours(list(read_manifest(folder / "shards" / "manifest.tsv")), folder / "reader")


def iterate_unpacked(rows: list[ManifestRow], folder: Path) -> Iterator[Load]:
    """Yield the load of each batch of our reader from tar archives that have FLAC as WAV."""
    return iterate_shards(rows, folder, "--unpack-flac")


def iterate_decoder(rows: list[ManifestRow], _: Path) -> Iterator[Load]:
    """Yield each file, decoded by libsndfile and nothing else."""
    generator = np.random.default_rng(0)
    while True:
        for index in generator.permutation(len(rows)):
            soundfile.read(rows[index].path, dtype="float32")
            yield Load(rows[index].duration, rows[index].duration)


def iterate_lhotse(rows: list[ManifestRow], folder: Path) -> Iterator[Load]:
    """Yield the load of each batch of lhotse's loader, set up as its recipes do."""
    from lhotse import CutSet, NumpyFilesWriter, Recording  # noqa: PLC0415
    from lhotse.dataset import DynamicBucketingSampler  # noqa: PLC0415
    from lhotse.dataset.collation import collate_audio, collate_custom_field  # noqa: PLC0415

    class WaveformsAndCodes(torch.utils.data.Dataset[tuple[Any, ...]]):
        def __getitem__(self, cuts: Any) -> tuple[Any, ...]:
            return *collate_audio(cuts), *collate_custom_field(cuts, "codes", pad_value=-100)

    cuts = []
    with NumpyFilesWriter(folder / "arrays") as writer:
        for index, row in enumerate(rows):
            cut = Recording.from_file(row.path, recording_id=str(index)).to_cut()
            codes = make_codes(row)
            cut.codes = writer.store_array(str(index), codes, frame_shift=1 / CODES.frame_rate_hz, temporal_dim=0)
            cuts.append(cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE))

    sampler = DynamicBucketingSampler(
        CutSet.from_cuts(cuts).repeat(), max_duration=BATCH_SECONDS, num_buckets=NUM_BUCKETS, shuffle=True
    )
    for _, lengths, _, _ in torch.utils.data.DataLoader(WaveformsAndCodes(), sampler=sampler, batch_size=None):
        yield Load(int(lengths.sum()) / SAMPLE_RATE, int(lengths.max()) * lengths.numel() / SAMPLE_RATE)


def measure(batches: Iterator[Load], seconds: float) -> tuple[float, float]:
    """Read ``seconds`` of audio or more; return audio seconds per processor second and the share without padding."""
    start, audio, padded = time.process_time(), 0.0, 0.0
    while audio < seconds:
        load = next(batches)
        audio, padded = audio + load.audio, padded + load.padded

    return audio / (time.process_time() - start), audio / padded


def main() -> None:
    """Measure both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of audio files")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1000.0, help="audio of a round and side")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if (folder := arguments.folder) is None:
            folder = scratch / "audio"
            folder.mkdir()
            generate_corpus(folder)

        rows = list_rows(folder.resolve())
        makers = {
            "ours": iterate_ours,
            "ours, tar archives": iterate_shards,
            "ours, tar archives with --unpack-flac": iterate_unpacked,
            "libsndfile alone": iterate_decoder,
        }
        if find_spec("lhotse") is not None:
            makers["lhotse"] = iterate_lhotse
        sides = {name: make(rows, scratch / name) for name, make in makers.items()}

        results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for round_number in track(range(arguments.rounds + 1), "Rounds", console=Console(stderr=True), transient=True):
            for name, batches in sides.items():
                result = measure(batches, arguments.seconds)
                if round_number > 0:  # the first one fills buckets and caches
                    results[name].append(result)

    print_table(rows, results)


def print_table(rows: list[ManifestRow], results: dict[str, list[tuple[float, float]]]) -> None:
    """Print the medians in Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("fairseq2", "torch", "lhotse") if find_spec(name))
    hours = sum(row.duration for row in rows) / 3600
    print(f"{platform.machine()}, one process, Python {platform.python_version()}, {versions}")
    print(f"{len(rows)} files, {hours:.2f} hours\n")
    print("| side | audio seconds per processor second | from - to | of lhotse's | from - to | audio in a batch |")
    print("|---|---|---|---|---|---|")
    for name, rounds in results.items():
        speeds, shares = zip(*rounds, strict=True)
        spread = f"{min(speeds):,.0f} - {max(speeds):,.0f}"
        ratios = [mine / others for mine, (others, _) in zip(speeds, results.get("lhotse", rounds), strict=True)]
        ratio = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f}"
        print(f"| {name} | {statistics.median(speeds):,.0f} | {spread} | {ratio} | {statistics.median(shares):.0%} |")


if __name__ == "__main__":
    main()

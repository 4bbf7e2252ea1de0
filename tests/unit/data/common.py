"""Small corpora of noise whose codes tell where in the file they belong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from fairseq2.gang import FakeGang, Gangs
from torch import device

from spear_plugin.data.codes import CodeStoreIdentity, CodeStoreWriter
from spear_plugin.data.dataset import CorpusConfig
from spear_plugin.data.manifest import Domain, ManifestRow, manifest_digest, write_manifest
from spear_plugin.data.options import StreamOptions

SPEECH_STREAM = StreamOptions(num_codebooks=4, frame_rate_hz=50.0)
AUDIO_STREAM = StreamOptions(num_codebooks=2, frame_rate_hz=25.0, domains=("audio",))
STREAMS = {"speech": SPEECH_STREAM, "audio": AUDIO_STREAM}


def write_noise(
    path: Path, num_samples: int, *, sample_rate: int = 16_000, num_channels: int = 1, seed: int = 0
) -> None:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (num_samples, num_channels))
    soundfile.write(path, noise, sample_rate)


def make_corpus(
    folder: Path, name: str, durations: Sequence[float], *, domain: Domain = "speech", weight: float | None = None
) -> CorpusConfig:
    """Write flac files named NAME0, NAME1, ..., their manifest, and a code store for each stream of the domain."""
    folder = folder / name
    folder.mkdir(parents=True)
    rows = []

    for index, duration in enumerate(durations):
        path = folder / f"{name}{index}.flac"
        write_noise(path, round(duration * 16_000), seed=index)
        rows.append(
            ManifestRow(
                id=path.stem, path=path, num_samples=round(duration * 16_000), sample_rate=16_000, domain=domain
            )
        )

    manifest = folder / "train.tsv"
    write_manifest(manifest, rows)
    codes = {
        stream: make_store(folder / stream, manifest, rows, options)
        for stream, options in STREAMS.items()
        if domain in options.domains
    }

    return CorpusConfig(name=name, manifest=manifest, codes=codes, weight=weight)


def make_store(
    folder: Path, manifest: Path, rows: Sequence[ManifestRow], stream: StreamOptions, *, quantizer: str = "q"
) -> Path:
    """Write a store whose code at frame t of codebook k is (t + k) % 256, one frame short as a teacher's may be."""
    identity = CodeStoreIdentity(
        teacher="teacher:1",
        quantizer=quantizer,
        num_codebooks=stream.num_codebooks,
        codebook_size=256,
        frame_rate_hz=stream.frame_rate_hz,
        manifest=manifest_digest(manifest),
    )
    writer = CodeStoreWriter(folder, identity, 1)
    lengths = [int(row.num_samples * stream.frame_rate_hz // row.sample_rate) - 1 for row in rows]
    writer.write_shard(0, [row.id for row in rows], [expected_codes(0, n, stream.num_codebooks) for n in lengths])
    writer.finish()

    return folder


def expected_codes(first: int, num_frames: int, num_codebooks: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    frames = np.arange(first, first + num_frames)[:, None]

    return ((frames + np.arange(num_codebooks)) % 256).astype(np.uint8)


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    cpu = device("cpu")
    gang, single = FakeGang(cpu, rank=rank, size=size), FakeGang(cpu)

    return Gangs(root=gang, dp=gang, rdp=gang, sdp=single, tp=single, pp=single)

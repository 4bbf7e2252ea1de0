"""Start-up of a training reader at the size of a real corpus: seconds of processor time and memory of each stage.

``python -m benchmarks.reader_scale [--rows 10000000]`` writes a manifest of that many rows into a temporary folder and
a code store of the same ids, each with one frame, and opens a reader up to its first 100 groups. No audio is read.
``--max-rows-in-store 0`` leaves the store out.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.audio import resampled_length
from spear_plugin.data.codes import CodeStore, CodeStoreIdentity, CodeStoreWriter
from spear_plugin.data.grouping import PlanOptions
from spear_plugin.data.manifest import read_manifest, rows_digest
from spear_plugin.data.planning import TrainingPlan
from spear_plugin.data.segments import cut_segments

SAMPLE_RATE: Final = 16_000
BLOCK: Final = 100_000
NUM_GROUPS: Final = 100


def write_rows(path: Path, num_rows: int) -> None:
    """Write utterances of 6 to 30 seconds with ids and paths as long as those of GigaSpeech."""
    generator = np.random.default_rng(0)
    line = b"POD0000000000_S00000000\taudio/000000/POD0000000000_S00000000.flac\t000000\t16000\tspeech\n"
    number, member, length = line.index(b"_S") + 2, line.rindex(b"_S") + 2, line.index(b"\t000000\t") + 1
    with path.open("wb") as stream:
        stream.write(b"id\tpath\tnum_samples\tsample_rate\tdomain\n")
        for first in range(0, num_rows, BLOCK):
            rows = np.arange(first, min(first + BLOCK, num_rows))
            lines = np.tile(np.frombuffer(line, dtype=np.uint8), (rows.size, 1))
            lines[:, number : number + 8] = lines[:, member : member + 8] = to_digits(rows, 8)
            lengths = generator.integers(100_000, 30 * SAMPLE_RATE, rows.size)
            lines[:, length : length + 6] = to_digits(lengths, 6)
            stream.write(lines.tobytes())


def to_digits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Return (N, width) ASCII digits."""
    return (numbers[:, None] // 10 ** np.arange(width)[::-1] % 10 + ord("0")).astype(np.uint8)


def write_store(folder: Path, num_rows: int) -> None:
    """Write a store of the ids whose manifest is another one, so that ids must be looked up."""
    identity = CodeStoreIdentity(
        teacher="none", quantizer="none", num_codebooks=1, codebook_size=256, frame_rate_hz=50.0, manifest="another"
    )
    codes = np.zeros((1, 1), dtype=np.uint8)
    firsts = range(0, num_rows, BLOCK)
    writer = CodeStoreWriter(folder, identity, len(firsts))
    for shard, first in enumerate(firsts):
        ids = [f"POD0000000000_S{index:08d}" for index in range(first, min(first + BLOCK, num_rows))]
        writer.write_shard(shard, ids, [codes] * len(ids))
    writer.finish()


def resident_megabytes() -> float:
    """Return the memory of this process, files it has mapped included."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


@contextmanager
def measured(stage: str) -> Iterator[None]:
    """Print the processor time of a stage and by how much memory has grown."""
    seconds, megabytes = time.process_time(), resident_megabytes()
    yield
    print(
        f"| {stage} | {time.process_time() - seconds:.1f} | {resident_megabytes() - megabytes:.0f} | "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} |",
        flush=True,
    )


class Corpus:
    """What a plan asks for."""

    weight = 1.0
    shards: NDArray[np.uint32] | None = None

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self.lengths = lengths


def measure(manifest: Path, store: Path | None) -> None:
    """Print a table of the stages in which a reader is opened."""
    print("| stage | CPU s | memory, MB | highest so far, MB |\n|---|---|---|---|")
    print(f"| imports | | {resident_megabytes():.0f} | |")

    with measured("manifest"):
        rows = read_manifest(manifest)
    with measured("digest of the manifest"):
        rows_digest(rows)

    if store is not None:
        with measured("index of the code store"):
            codes = CodeStore(store)
        with measured("look-up of all ids"):
            assert codes.has_hashes(rows.id_hashes).all()

    with measured("segments"):
        lengths = resampled_length(rows.num_samples, rows.sample_rates, SAMPLE_RATE)
        segments = cut_segments(lengths, min_length=SAMPLE_RATE, max_length=30 * SAMPLE_RATE, grid=320)
    with measured("plan"):
        options = PlanOptions(num_processes=8, max_batch_length=200 * SAMPLE_RATE)
        plan = TrainingPlan([Corpus(segments.lengths)], options)
    with measured(f"first {NUM_GROUPS} groups"):
        for _ in itertools.islice(plan.groups_from(plan.begin()), NUM_GROUPS):
            pass
    with measured("10,000 rows in random order"):
        for index in np.random.default_rng(0).integers(len(rows), size=10_000):
            _ = rows[int(index)]


def main() -> None:
    """Write the corpus and open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--max-rows-in-store", type=int, help="all rows by default; 0: no store")
    options = parser.parse_args()
    num_stored = options.rows if options.max_rows_in_store is None else min(options.rows, options.max_rows_in_store)

    with tempfile.TemporaryDirectory() as name:
        manifest, store = Path(name) / "m.tsv", Path(name) / "codes"
        write_rows(manifest, options.rows)
        if num_stored:
            write_store(store, num_stored)
        print(f"{options.rows} rows, {manifest.stat().st_size / 1e6:.0f} MB; {platform.processor()}, 1 process")
        measure(manifest, store if num_stored else None)


if __name__ == "__main__":
    main()

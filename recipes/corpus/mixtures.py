"""Probe tasks on mixtures: each clip of a task with a piece of another recording over it.

    python -m recipes.corpus.mixtures OUT --task demo/corpora/probe/events.tsv --with demo/corpora/speech/valid.tsv
    python -m recipes.corpus.mixtures OUT --task demo/corpora/probe/phones.tsv --with demo/corpora/audio/valid.tsv

OUT has the task (events_mixed.tsv), its alignment if there is one, and the mixtures as FLAC at 16 kHz in OUT/audio.
Labels and splits are those of the task: the question is what features tell of the first recording. Which piece goes
over a clip follows from the seed and the clip's id.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.corpus.console import CorpusError, default_num_workers, map_parallel, run_command
from spear_plugin.data.audio import read_audio
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.data.mixing import add_at
from spear_plugin.data.seeds import derive_seed

SAMPLE_RATE: Final = 16_000

_PEAK: Final = 0.99


@final
@dataclass(frozen=True, kw_only=True)
class _Mixture:
    """A clip and what goes over it."""

    clip: Path
    other: ManifestRow
    target: Path
    snr_db: float
    seed: int

    def write(self) -> int:
        """Write the mixture unless it is there already; return its number of samples."""
        if self.target.exists():
            return int(soundfile.info(self.target).frames)

        waveform = read_audio(self.clip, sample_rate=SAMPLE_RATE)
        other = self._read_other(waveform.size)
        mixed = add_at(waveform, other, 0, self.snr_db)
        waveform = waveform if mixed is None else mixed  # None: one of them is silent
        waveform = waveform * min(1.0, _PEAK / max(float(np.max(np.abs(waveform))), 1e-9))
        with atomic_file(self.target) as temporary:
            soundfile.write(temporary, waveform, SAMPLE_RATE, format="FLAC")
        return int(waveform.size)

    def _read_other(self, num_samples: int) -> NDArray[np.float32]:
        """Return a piece of the other recording, repeated if it is too short."""
        generator = np.random.default_rng(self.seed)
        other = read_audio(self.other.path, sample_rate=SAMPLE_RATE)
        start = int(generator.integers(max(other.size - num_samples, 0) + 1))
        return np.resize(other[start : start + num_samples], num_samples)


def main(arguments: Sequence[str]) -> None:
    """Write the mixtures, then their task.

    :raises CorpusError: If the task or the manifest is missing or empty.
    """
    options = _parse(arguments)
    rows, columns = _read_task(options.task)
    others = read_manifest(options.over)
    if not others:
        raise CorpusError(f"{options.over}: has no recordings to put over the clips. Name another manifest.")

    mixtures = [_plan(options, row, others) for row in rows]
    for folder in {mixture.target.parent for mixture in mixtures}:
        folder.mkdir(parents=True, exist_ok=True)
    # Several rows may be pieces of one clip.
    by_target = {mixture.target: mixture for mixture in mixtures}
    lengths = map_parallel(_Mixture.write, list(by_target.values()), num_workers=options.workers, title="mix clips")
    num_samples = dict(zip(by_target, lengths, strict=True))

    for row, mixture in zip(rows, mixtures, strict=True):
        row["path"] = str(mixture.target.relative_to(options.out))
        row["num_samples"], row["sample_rate"] = str(num_samples[mixture.target]), str(SAMPLE_RATE)
    name = f"{options.task.stem}_mixed"
    alignment = options.task.with_suffix(".alignment.tsv")
    if alignment.exists():
        with atomic_file(options.out / f"{name}.alignment.tsv") as temporary:
            shutil.copyfile(alignment, temporary)
    with atomic_file(options.out / f"{name}.tsv") as temporary:
        lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.out / name}.tsv: {len(rows)} examples of {len(by_target)} mixtures")


def _plan(options: argparse.Namespace, row: dict[str, str], others: Sequence[ManifestRow]) -> _Mixture:
    id_ = row["utterance"]
    seed = derive_seed("mixture", options.seed, id_)
    candidates = [other for other in others if other.id != id_] or others
    return _Mixture(
        clip=options.task.parent / row["path"],
        other=candidates[seed % len(candidates)],
        target=options.out / "audio" / f"{id_}.flac",
        snr_db=options.snr,
        seed=seed,
    )


def _read_task(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such task. `recipes.corpus.packaged` writes some.") from None
    if not rows or not {"utterance", "path", "num_samples", "sample_rate"} <= set(columns):
        raise CorpusError(f"{path}: is not a probe task: it must have examples with an utterance and a path.")
    return rows, columns


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.mixtures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the task and its recordings")
    parser.add_argument("--task", metavar="TSV", type=Path, required=True, help="probe task")
    parser.add_argument("--with", metavar="TSV", type=Path, required=True, dest="over", help="manifest of the others")
    parser.add_argument("--snr", type=float, default=0.0, help="of the clip to the other, in dB (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=default_num_workers(), help="processes (default: all cores)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)

"""Probe tasks on soundscapes: clips of a labelled task put at known times over other recordings or over noise.

    python -m recipes.corpus.soundscapes OUT --task demo/corpora/probe/events.tsv
    python -m recipes.corpus.soundscapes OUT --task demo/corpora/probe/events.tsv --with demo/corpora/speech/valid.tsv

OUT has soundscapes.tsv of the kind `timestamps` with soundscapes.alignment.tsv, where `phone` is the class of an event
and `word` the clip; scenes.tsv of the kind `scenes`, with all classes of a soundscape as its label; and the soundscapes
as FLAC at 16 kHz in OUT/audio. Events may overlap. A split has only clips of the same split, and a background of its
own. What is in a soundscape follows from the seed and its id.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import numpy as np
import soundfile
from numpy.typing import NDArray

from recipes.corpus.console import CorpusError, default_num_workers, map_parallel, run_command
from recipes.corpus.examples import Example, write_examples
from recipes.corpus.splits import Split, place
from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.audio import read_audio
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow, Seconds, read_manifest
from spear_plugin.data.mixing import add_at
from spear_plugin.data.seeds import derive_seed

SAMPLE_RATE: Final = 16_000

_PEAK: Final = 0.99
_NOISE_LEVEL: Final = 0.01
_MAX_EVENT_SECONDS: Final = 2.0
_MIN_EVENT_SECONDS: Final = 0.06
_SNR_DB: Final = (6.0, 20.0)
"""Of an event to the background."""
_RESOLUTION: Final = 0.01
"""Of the times in an alignment."""


@final
@dataclass(frozen=True)
class _Sound:
    """A clip of the task."""

    id: str
    path: Path
    label: str


@final
@dataclass(frozen=True, kw_only=True)
class _Soundscape:
    """What goes into a recording."""

    id: str
    split: Split
    target: Path
    seconds: Seconds
    sounds: Sequence[_Sound]
    """To draw from."""
    background: Sequence[ManifestRow]
    """To draw from; noise if there is none."""
    max_events: int
    seed: int

    def write(self) -> list[Segment]:
        """Write the recording, and return its events in time order."""
        generator = np.random.default_rng(self.seed)
        background = self._draw_background(generator)
        waveform, segments = background, []
        for _ in range(int(generator.integers(1, self.max_events + 1))):
            sound = self.sounds[int(generator.integers(len(self.sounds)))]
            event = read_audio(sound.path, sample_rate=SAMPLE_RATE)[: round(_MAX_EVENT_SECONDS * SAMPLE_RATE)]
            step = round(_RESOLUTION * SAMPLE_RATE)
            start = step * int(generator.integers((background.size - event.size) // step))
            snr_db = float(generator.uniform(*_SNR_DB))
            mixed = add_at(background, event, start, -snr_db)
            # None: one of them is silent.
            if mixed is not None and event.size >= _MIN_EVENT_SECONDS * SAMPLE_RATE:
                waveform = waveform + (mixed - background)
                times = start / SAMPLE_RATE, (start + event.size) / SAMPLE_RATE
                segments.append(Segment(*times, sound.label, sound.id))
        waveform = waveform * min(1.0, _PEAK / max(float(np.max(np.abs(waveform))), 1e-9))
        with atomic_file(self.target) as temporary:
            soundfile.write(temporary, waveform, SAMPLE_RATE, format="FLAC")
        return sorted(segments, key=lambda segment: segment.start)

    def _draw_background(self, generator: np.random.Generator) -> NDArray[np.float32]:
        num_samples = round(self.seconds * SAMPLE_RATE)
        if not self.background:
            return (_NOISE_LEVEL * generator.standard_normal(num_samples)).astype(np.float32)
        row = self.background[int(generator.integers(len(self.background)))]
        recording = read_audio(row.path, sample_rate=SAMPLE_RATE)
        start = int(generator.integers(max(recording.size - num_samples, 0) + 1))
        return np.resize(recording[start : start + num_samples], num_samples)


def main(arguments: Sequence[str]) -> None:
    """Write the soundscapes, then their tasks.

    :raises CorpusError: If the task or the manifest is missing or has too little.
    """
    options = _parse(arguments)
    sounds = _read_sounds(options.task, options.classes)
    background = _divide(read_manifest(options.over)) if options.over is not None else {}
    numbers: dict[Split, int] = {"train": options.train, "valid": options.valid, "test": options.test}
    soundscapes = [
        _plan(options, split, number, sounds.get(split, []), background)
        for split, total in numbers.items()
        for number in range(total)
    ]
    (options.out / "audio").mkdir(parents=True, exist_ok=True)
    events = map_parallel(_Soundscape.write, soundscapes, num_workers=options.workers, title="make soundscapes")

    examples = [
        _example(soundscape, "|".join(sorted({segment.phone for segment in segments})))
        for soundscape, segments in zip(soundscapes, events, strict=True)
    ]
    alignment = {soundscape.id: segments for soundscape, segments in zip(soundscapes, events, strict=True)}
    write_alignment(options.out / "soundscapes.alignment.tsv", alignment)
    write_examples(options.out / "soundscapes.tsv", [replace(example, kind="timestamps") for example in examples])
    write_examples(options.out / "scenes.tsv", [replace(example, kind="scenes") for example in examples])
    print(f"{options.out}: {len(examples)} soundscapes with {sum(map(len, events))} events")


def _plan(
    options: argparse.Namespace,
    split: Split,
    number: int,
    sounds: Sequence[_Sound],
    background: dict[Split, list[ManifestRow]],
) -> _Soundscape:
    if not sounds:
        raise CorpusError(f"{options.task}: has no clips in the {split} split. Name another task.")
    if background and not background[split]:
        raise CorpusError(f"{options.over}: has too few recordings for a background of the {split} split. Name more.")
    id_ = f"soundscape/{split}/{number:04d}"
    return _Soundscape(
        id=id_,
        split=split,
        target=options.out / "audio" / f"{split}-{number:04d}.flac",
        seconds=options.seconds,
        sounds=sounds,
        background=background.get(split, []),
        max_events=options.max_events,
        seed=derive_seed("soundscape", options.seed, id_),
    )


def _example(soundscape: _Soundscape, label: str) -> Example:
    row = ManifestRow(
        id=soundscape.id,
        path=soundscape.target,
        num_samples=round(soundscape.seconds * SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
        domain="audio",
    )
    return Example.of_row(row, label=label, split=soundscape.split)


def _divide(rows: Sequence[ManifestRow]) -> dict[Split, list[ManifestRow]]:
    """Return three quarters of the rows for training, and an eighth for each other split, by hash."""
    divided: dict[Split, list[ManifestRow]] = {"train": [], "valid": [], "test": []}
    for row in rows:
        where = place(row.id)
        divided["train" if where < 0.75 else "valid" if where < 0.875 else "test"].append(row)
    return divided


def _read_sounds(path: Path, num_classes: int) -> dict[str, list[_Sound]]:
    """Return the clips of the most frequent classes by split."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise CorpusError(f"{path}: there is no such task. `recipes.corpus.packaged` writes some.") from None
    if not rows or not {"id", "path", "label", "split"} <= rows[0].keys():
        raise CorpusError(f"{path}: is not a probe task: it must have examples with a path, a label and a split.")
    counts = Counter(row["label"] for row in rows)
    classes = {label for label, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:num_classes]}
    sounds: dict[str, list[_Sound]] = {}
    for row in rows:
        if row["label"] in classes:
            sounds.setdefault(row["split"], []).append(_Sound(row["id"], path.parent / row["path"], row["label"]))
    return sounds


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.soundscapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the tasks and their recordings")
    parser.add_argument("--task", metavar="TSV", type=Path, required=True, help="probe task of whole clips")
    parser.add_argument(
        "--with", metavar="TSV", type=Path, dest="over", help="manifest of backgrounds (default: noise)"
    )
    for split, number in (("train", 150), ("valid", 40), ("test", 60)):
        parser.add_argument(
            f"--{split}", type=int, default=number, metavar="N", help="soundscapes (default: %(default)s)"
        )
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (default: %(default)s)")
    parser.add_argument("--max-events", type=int, default=4, help="in each, at least one (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=8, help="the most frequent ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=default_num_workers(), help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    if options.seconds <= _MAX_EVENT_SECONDS:
        parser.error(f"--seconds must be more than {_MAX_EVENT_SECONDS:g}, the longest event")
    if min(options.train, options.valid, options.test, options.max_events, options.classes, options.workers) < 1:
        parser.error("numbers must be at least 1")
    return options


if __name__ == "__main__":
    run_command(main)

"""Make the tiny real corpus of the tests from the packaged corpora, in a second::

    python -m recipes.corpus.packaged /tmp/corpora --small
    python -m tests.data.make /tmp/corpora

English prompts stay as they are in the package (G.722); sonic-pi samples in the public domain (CC0) are mixed to mono,
resampled to 16 kHz and cut to two seconds.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import soundfile

from recipes.corpus.splits import place
from spear_plugin.data.alignments import read_alignment
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest

FOLDER: Final = Path(__file__).parent

NUM_PROMPTS: Final = 25
EVENT_CLASSES: Final = ("ambi", "bd", "drum", "elec", "loop", "tabla")
NUM_EVENTS_PER_CLASS: Final = 5
EVENT_SECONDS: Final = 2.0
SAMPLE_RATE: Final = 16_000


def main(corpora: Path) -> None:
    for folder in ("speech", "audio"):
        shutil.rmtree(FOLDER / folder, ignore_errors=True)

        (FOLDER / folder).mkdir()

    write_manifest(FOLDER / "speech.tsv", [_copy_prompt(row) for row in _choose_prompts(corpora)])

    write_manifest(FOLDER / "audio.tsv", [_shorten_event(row) for row in _choose_events(corpora)])


def _choose_prompts(corpora: Path) -> list[ManifestRow]:
    alignment = read_alignment(corpora / "corpora" / "asterisk_en.alignment.tsv")

    rows = read_manifest(corpora / "corpora" / "asterisk_en.tsv")

    fitting = [row for row in rows if 1.5 < row.duration < 4.0 and row.id in alignment]

    return sorted(sorted(fitting, key=lambda row: place(row.id))[:NUM_PROMPTS], key=lambda row: row.id)


def _copy_prompt(row: ManifestRow) -> ManifestRow:
    path = FOLDER / "speech" / f"{row.label.replace('/', '_')}.g722"

    shutil.copyfile(row.path, path)

    return replace(row, path=path)


def _choose_events(corpora: Path) -> Iterator[ManifestRow]:
    notice = (corpora / "licences" / "sonic-pi-samples.copyright").read_text(encoding="utf-8")

    public_domain = set(
        re.findall(r"^Files: etc/samples/(\S+)\.flac\n(?:[A-KM-Z ].*\n)*?License: CC0$", notice, re.MULTILINE)
    )

    rows = [row for row in read_manifest(corpora / "corpora" / "sonic_pi.tsv") if row.path.stem in public_domain]

    for label in EVENT_CLASSES:
        yield from islice((row for row in rows if row.label == label), NUM_EVENTS_PER_CLASS)


def _shorten_event(row: ManifestRow) -> ManifestRow:
    path = FOLDER / "audio" / row.path.name

    waveform = read_audio(row.path, sample_rate=SAMPLE_RATE, duration=min(row.duration, EVENT_SECONDS))  # (S,)

    soundfile.write(path, waveform, SAMPLE_RATE)

    return replace(row, path=path, num_samples=waveform.size, sample_rate=SAMPLE_RATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

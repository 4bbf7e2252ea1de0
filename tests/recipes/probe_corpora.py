"""Small corpora for probes, of tones in noise, and what calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from fairseq2.recipe.run import run
from torch import Tensor

from recipes.feature_sources import FeatureSource, FrameTiming
from recipes.probe.config import ProbeConfig, ProbeSection, TaskReference
from recipes.probe.extraction import extract_features
from recipes.probe.kinds import open_task
from recipes.probe.recipe import ProbeRecipe
from recipes.probe.tasks import Features, ProbeTask

RATE = 16_000

TONES = {"AA": 300.0, "IY": 900.0, "UW": 2500.0}
"""Phones of the test corpus and their frequencies in Hz."""

COLUMNS = [
    "id",
    "utterance",
    "path",
    "num_samples",
    "sample_rate",
    "domain",
    "label",
    "split",
    "fold",
    "start",
    "end",
    "text",
    "speaker",
    "language",
]


def write_table(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", delimiter="\t", quoting=csv.QUOTE_NONE)

        writer.writeheader()

        writer.writerows(rows)


def write_tone(path: Path, frequencies: list[float], seed: int, *, seconds: float = 0.15) -> int:
    """Write tones in noise, one after the other, and return the number of samples."""
    time = np.arange(int(RATE * seconds)) / RATE

    waveform = np.concatenate([0.3 * np.sin(2 * np.pi * f * time) for f in frequencies])

    waveform += 0.02 * np.random.default_rng(seed).standard_normal(waveform.size)

    soundfile.write(path, waveform, RATE)

    return waveform.size


def write_probe_corpus(folder: Path) -> Path:
    """Write the tasks ``phones`` (frames of tones) and ``events`` (whole files, three folds) to a folder."""
    generator = np.random.default_rng(0)

    phones, alignment, events = [], [], []

    for number in range(15):
        names = ["SIL", *generator.permutation(list(TONES)).tolist(), *generator.permutation(list(TONES)).tolist()]

        num_samples = write_tone(folder / f"u{number}.wav", [TONES.get(name, 0.0) for name in names], number)

        whole = {"id": f"u{number}", "utterance": f"u{number}", "path": f"u{number}.wav", "num_samples": num_samples}

        whole |= {"sample_rate": RATE, "domain": "speech", "start": 0.0, "end": num_samples / RATE}

        phones.append(whole | {"split": ("train", "train", "train", "valid", "test")[number % 5]})

        alignment += [
            {"id": f"u{number}", "start": f"{0.15 * i:.2f}", "end": f"{0.15 * (i + 1):.2f}", "phone": name, "word": ""}
            for i, name in enumerate(names)
        ]

    for number in range(18):
        label = list(TONES)[number % 3]

        num_samples = write_tone(folder / f"e{number}.wav", [TONES[label]] * 2, 100 + number)

        row = {"id": f"e{number}", "utterance": f"e{number}", "path": f"e{number}.wav", "num_samples": num_samples}

        row |= {"sample_rate": RATE, "domain": "audio", "label": label, "split": "train", "fold": number // 3 % 3}

        events.append(row | {"start": 0.0, "end": num_samples / RATE})

    write_table(folder / "phones.tsv", COLUMNS, phones)

    write_table(folder / "phones.alignment.tsv", ["id", "start", "end", "phone", "word"], alignment)

    write_table(folder / "events.tsv", COLUMNS, events)

    return folder


def make_config(corpus: Path, **settings: Any) -> ProbeConfig:
    config = ProbeConfig(tasks=[corpus / "phones.tsv", corpus / "events.tsv"], **settings)

    config.probe.l2_grid = [1e-2]

    config.probe.max_iterations = 20

    config.common.torch.num_threads = 1

    return config


def run_probe(config: ProbeConfig, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    run(ProbeRecipe(), config, folder, no_rich=True)

    report = json.loads((folder / "probe.json").read_text())

    return {(result["task"], result["source"]): result for result in report["results"]}


class CountingSource(FeatureSource):
    """The number of a frame as its only feature, in two layers of opposite sign; 10 Hz, frame 0 centred at 52 ms."""

    identity = "counting"
    sample_rate = RATE
    timing = FrameTiming(10.0, first_centre=0.052)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // 1600

    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        numbers = torch.arange(waveforms.size(1) // 1600).float().expand(waveforms.size(0), -1).unsqueeze(-1)

        return [numbers, -numbers], lengths // 1600


def read_task(path: Path, section: ProbeSection | None = None, *, seed: int = 0, kind: str | None = None) -> ProbeTask:
    """Open a task under the name of its file."""
    return open_task(TaskReference(path, kind, path.stem), section or ProbeSection(), seed=seed)


def extract(source: FeatureSource, task: ProbeTask) -> Features:
    features = extract_features(
        source,
        [task],
        max_batch_seconds=2.0,
        device=torch.device("cpu"),
        report=lambda num_files: None,
    )

    return features[0]


def extract_tensor(source: FeatureSource, task: ProbeTask) -> Tensor:
    features = extract(source, task)
    assert isinstance(features, Tensor)
    return features

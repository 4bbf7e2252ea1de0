"""Every preset takes a step at a small width, with its streams, mixing, precision, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.common import DATA_FOLDER
from tests.recipes.common import SMALL_MODEL, PretrainRunner, write_random_codes

PRESETS = sorted((Path(__file__).parents[2] / "recipes" / "spear" / "pretrain" / "configs").glob("*.yaml"))
OPTIONS = [
    "model.arch=base",  # whose other settings suit any width
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "dataset.max_seconds=15",
    "dataset.num_parallel=1",
    "regime.num_steps=1",
    "regime.validate_every_n_steps=1",
    "regime.checkpoint_every_n_steps=1",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_takes_a_step(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(preset.read_text())
    streams = config["model"]["config_overrides"]["target_streams"]
    runner = PretrainRunner(tmp_path, [*OPTIONS, *own_options(config)], monkeypatch, capsys)
    corpora = "[" + ", ".join(write_corpora(tmp_path, streams)) + "]"
    assert runner(config_file=str(preset), corpora=corpora) == (0, [])
    record = runner.read_steps("train")[1]
    for stream in streams:
        # New heads are somewhat worse than guessing among 256 entries, 5.5.
        assert 4.0 < record[f"{stream['name'].capitalize()} Loss"] < 15.0


def own_options(config: dict[str, Any]) -> Iterator[str]:
    """Yield the options that only some presets need."""
    if "noise" in config["dataset"].get("mixing", {}):
        yield f"dataset.mixing.noise.manifest={DATA_FOLDER / 'audio.tsv'}"
    if config["lr_scheduler"]["name"] == "eden":
        yield "lr_scheduler.config.batch_seconds=15"
    if config["trainer"].get("mixed_precision", {}).get("dtype") == "float16":
        yield "trainer.mixed_precision.dtype=bfloat16"  # the other is for GPUs


def write_corpora(folder: Path, streams: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the corpora in tests/data of the domains that a stream is predicted on, with random codes."""
    for domain in ("speech", "audio"):
        manifest = DATA_FOLDER / f"{domain}.tsv"
        codes = {
            stream["name"]: write_random_codes(
                folder / f"{domain}_{stream['name']}",
                manifest,
                frame_rate_hz=stream["frame_rate_hz"],
                num_codebooks=stream["num_codebooks"],
            )
            for stream in streams
            if stream["weights"].get(domain, 0.0) > 0.0
        }
        if codes:
            listed = ", ".join(f"{name}: {path}" for name, path in codes.items())
            yield f"{{name: {domain}, manifest: {manifest}, codes: {{{listed}}}}}"

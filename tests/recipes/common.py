"""Calls recipes as from the command line, and makes the corpora they read."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fairseq2.recipe.base import Recipe

from recipes.common import main
from spear_plugin.data.codes import CodeStoreIdentity, CodeStoreWriter
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest
from tests.common import DATA_FOLDER


def call_recipe(
    recipe: Recipe, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Run a recipe as `python -m` does, in this process; return its exit code and its lines of errors."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments, "--no-rich"])
    code = 0
    try:
        main(recipe, None)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    _, separator, text = capsys.readouterr().err.partition(" ERROR: ")
    lines = (separator + text).splitlines()
    return code, [re.sub(r"^.* ERROR: \S+ - ", "", line) for line in lines]


def write_random_codes(
    folder: Path,
    manifest: Path,
    *,
    frame_rate_hz: float,
    num_codebooks: int = 2,
    quantizer: str = "0123456789abcdef",
    seed: int = 0,
) -> Path:
    """Write a code store with random codes for a manifest."""
    rows = read_manifest(manifest)
    identity = CodeStoreIdentity(
        teacher=f"test:{frame_rate_hz:g}",
        quantizer=quantizer,
        num_codebooks=num_codebooks,
        codebook_size=256,
        frame_rate_hz=frame_rate_hz,
        manifest=manifest_digest(manifest),
    )
    generator = np.random.default_rng(seed)

    def draw(row: ManifestRow) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return generator.integers(0, 256, (int(row.duration * frame_rate_hz), num_codebooks), dtype=np.uint8)

    writer = CodeStoreWriter(folder, identity, num_shards=1)
    writer.write_shard(0, [row.id for row in rows], [draw(row) for row in rows])
    writer.finish()
    return folder


def write_test_codes(folder: Path) -> str:
    """Write random codes of both streams for the corpora in tests/data; return the corpora as a line of YAML."""
    speech, audio = DATA_FOLDER / "speech.tsv", DATA_FOLDER / "audio.tsv"
    codes = {
        "speech": write_random_codes(folder / "speech_speech", speech, frame_rate_hz=50.0),
        "audio_speech": write_random_codes(folder / "audio_speech", audio, frame_rate_hz=50.0),
        "audio": write_random_codes(folder / "audio_audio", audio, frame_rate_hz=25.0),
    }
    return (
        f"[{{name: speech, manifest: {speech}, codes: {{speech: {codes['speech']}}}}}, "
        f"{{name: audio, manifest: {audio}, codes: {{speech: {codes['audio_speech']}, audio: {codes['audio']}}}}}]"
    )


def read_steps(path: Path) -> dict[int, dict[str, float]]:
    """Return the records of a metrics file by step, the last one where a step stands twice."""
    return {record["Step"]: record for record in map(json.loads, path.read_text().splitlines())}

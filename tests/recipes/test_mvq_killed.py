"""A store whose making was killed at every point of every file has the bytes of one made in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.run import run

import recipes.common
import spear_plugin.data.codes
import spear_plugin.data.shards
from recipes.mvq.encode import recipe
from recipes.mvq.encode.config import EncodeCorpusSection, MvqEncodeConfig
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.targets import QuantizerSection, load_target_source
from spear_plugin.data.codes import CodeStore
from spear_plugin.quantizers import MvqQuantizerConfig, create_mvq_quantizer, save_quantizer_asset
from spear_plugin.teachers import TeacherConfig
from tests.recipes.test_extract import write_rows


class Killer:
    """Ends each run at the first point where none was ended before, and leaves behind what a killed process leaves."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def pass_by(self, point: str) -> None:
        if point not in self.points:
            self.points.append(point)
            raise KeyboardInterrupt

    @contextmanager
    def atomic_file(self, path: Path) -> Iterator[Path]:
        self.pass_by(f"before {path.name}")
        temporary = path.with_name(f".{path.name}.{len(self.points)}.tmp")
        yield temporary
        content = temporary.read_bytes()
        temporary.write_bytes(content[: len(content) // 2])
        self.pass_by(f"in the middle of {path.name}")
        temporary.write_bytes(content)
        self.pass_by(f"before {path.name} takes its place")
        temporary.replace(path)
        self.pass_by(f"behind {path.name}")


def encode(folder: Path) -> Path:
    """Encode in two shards."""
    config = MvqEncodeConfig(
        teacher=TeacherConfig(name="log_mel"),
        quantizer=QuantizerSection(path=str(folder / "quantizer")),
        corpus=EncodeCorpusSection(manifest=folder / "speech.tsv", rows_per_shard=2),
    )
    run(MvqEncodeRecipe(), config, folder / "store", no_rich=True)
    return folder / "store"


def prepare(folder: Path) -> Path:
    """Write a quantizer and a manifest of three files, one of which is none."""
    torch.manual_seed(0)
    config = MvqQuantizerConfig(dim=256, num_codebooks=2, normalize=False)
    folder.mkdir()
    save_quantizer_asset(folder / "quantizer", create_mvq_quantizer(config), config, "test_quantizer")
    (folder / "0.wav").write_bytes(b"RIFF, and then nothing")
    for index in (1, 2):
        soundfile.write(folder / f"{index}.wav", np.random.default_rng(index).uniform(-0.5, 0.5, 4_800), 16_000)
    write_rows(folder / "speech.tsv", [f"id{index}\t{folder}/{index}.wav\t4800\t16000" for index in range(3)])
    return folder


def read_files(store: Path) -> dict[str, bytes]:
    """Return all files but logs and the configuration, temporary ones included."""
    files = [path for path in store.rglob("*") if path.is_file() and path.relative_to(store).parts[0] != "logs"]
    return {str(path.relative_to(store)): path.read_bytes() for path in files if path.name != "config.yaml"}


def test_a_store_killed_at_every_point_is_that_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, killer = prepare(tmp_path / "killed"), Killer()
    # Loaded once: it would be most of the time of the runs.
    source = load_target_source(
        TeacherConfig(name="log_mel"), QuantizerSection(path=str(folder / "quantizer")), device=torch.device("cpu")
    )
    monkeypatch.setattr(recipe, "load_target_source", lambda *_, **__: source)
    whole = read_files(encode(prepare(tmp_path / "whole")))
    for module in (recipes.common, spear_plugin.data.codes, spear_plugin.data.shards):
        monkeypatch.setattr(module, "atomic_file", killer.atomic_file)

    num_kills, is_done = 0, False
    while not is_done:
        try:
            encode(folder)
            is_done = True
        except KeyboardInterrupt:
            num_kills += 1

    found = read_files(folder / "store")
    assert num_kills == len(killer.points) >= 20
    assert {"in the middle of shard-00000.arrow", "behind complete.json"} <= set(killer.points)
    assert {name: content.replace(b"/killed/", b"/whole/") for name, content in found.items()} == whole
    assert CodeStore(folder / "store").ids() == ["id1", "id2"]

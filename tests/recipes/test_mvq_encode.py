from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.recipe.run import run

from recipes.mvq.encode.config import EncodeCorpusSection, MvqEncodeConfig
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.targets import QuantizerSection
from slurm.stages import torchrun
from spear_plugin.data.audio import read_audio
from spear_plugin.data.codes import CodeStore, CodeStoreWriter
from spear_plugin.data.manifest import manifest_digest, read_manifest
from spear_plugin.quantizers import (
    MvqQuantizerConfig,
    RandomProjectionQuantizerConfig,
    create_mvq_quantizer,
    create_random_projection_quantizer,
    load_quantizer,
    quantizer_identity,
    save_quantizer_asset,
)
from spear_plugin.teachers import TeacherConfig, load_teacher
from tests.common import DATA_FOLDER
from tests.recipes.common import call_recipe

ROOT = Path(__file__).parents[2]
NUM_ROWS = 7
ROWS_PER_SHARD = 2


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_quantizer(tmp_path_factory.mktemp("quantizer"), "whisper_tiny_en:1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven real prompts, in place."""
    path = tmp_path_factory.mktemp("corpus") / "speech.tsv"
    lines = [_line(row.id, row.path, row.num_samples) for row in read_manifest(DATA_FOLDER / "speech.tsv")[:NUM_ROWS]]
    return _write(path, lines)


@pytest.fixture(scope="module")
def store(manifest: Path, quantizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("store")
    _encode(manifest, quantizer, folder)
    return folder


def _save_quantizer(folder: Path, teacher: str, dim: int = 384) -> Path:
    torch.manual_seed(0)
    config = MvqQuantizerConfig(dim=dim, num_codebooks=2, normalize=False, teacher=teacher, frame_rate_hz=50.0)
    save_quantizer_asset(folder, create_mvq_quantizer(config), config, "test_quantizer")
    return folder


def _line(id_: str, path: Path, num_samples: int) -> str:
    return f"{id_}\t{path}\t{num_samples}\t16000\tspeech"


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(["id\tpath\tnum_samples\tsample_rate\tdomain", *lines]) + "\n")
    return path


def _encode(manifest: Path, quantizer: Path, folder: Path, **options: Any) -> None:
    config = MvqEncodeConfig(
        teacher=TeacherConfig(layer=1),
        quantizer=QuantizerSection(path=str(quantizer)),
        corpus=EncodeCorpusSection(manifest=manifest, rows_per_shard=ROWS_PER_SHARD, **options),
    )
    run(MvqEncodeRecipe(), config, folder, no_rich=True)


def _arguments(manifest: Path, quantizer: Path, folder: Path, *more: str) -> list[str]:
    settings = (
        "teacher.layer=1", f"corpus.manifest={manifest}", f"quantizer.path={quantizer}",
        f"corpus.rows_per_shard={ROWS_PER_SHARD}",
    )  # fmt: skip
    return [str(folder), "--config", *settings, *more]


def _read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((*folder.glob("*.arrow"), *folder.glob("*.json")))}


def test_codes_are_those_of_each_file_alone(manifest: Path, quantizer: Path, store: Path) -> None:
    codes = CodeStore(store)
    model = load_quantizer(quantizer)
    teacher = load_teacher(TeacherConfig(layer=1), device=torch.device("cpu"))

    assert codes.identity.teacher == "whisper_tiny_en:1"
    assert codes.identity.quantizer == quantizer_identity(model)
    assert codes.identity.manifest == manifest_digest(manifest)
    assert codes.ids() == [row.id for row in read_manifest(manifest)]

    for row in read_manifest(manifest)[:3]:
        waveform = torch.from_numpy(read_audio(row.path))
        frames = teacher(waveform.unsqueeze(0), torch.tensor([len(waveform)])).frames[0]
        agreement = torch.from_numpy(codes[row.id].copy()) == model.encode(frames)

        assert codes[row.id].shape == (int(row.duration * 50), 2)
        # Rounding may decide between two codes that are equally good.
        assert agreement.float().mean() > 0.99


def test_codes_of_a_large_codebook_take_two_bytes_and_are_read_back(manifest: Path, tmp_path: Path) -> None:
    config = RandomProjectionQuantizerConfig(
        dim=384, codebook_size=1000, normalize=False, teacher="whisper_tiny_en:1", frame_rate_hz=50.0
    )
    model = create_random_projection_quantizer(config)
    save_quantizer_asset(tmp_path / "quantizer", model, config, "test_random_projection")
    _encode(manifest, tmp_path / "quantizer", tmp_path / "store")
    codes = CodeStore(tmp_path / "store")
    teacher = load_teacher(TeacherConfig(layer=1), device=torch.device("cpu"))
    row = read_manifest(manifest)[0]
    waveform = torch.from_numpy(read_audio(row.path))
    expected = model.encode(teacher(waveform.unsqueeze(0), torch.tensor([len(waveform)])).frames[0])

    assert codes.identity.codebook_size == 1000
    assert codes[row.id].dtype == np.dtype("<u2")
    assert np.max(codes[row.id]) > 255
    # Rounding may decide between two directions that are equally near.
    assert (torch.from_numpy(codes[row.id].astype(np.int32)) == expected).float().mean() > 0.95


def test_interrupted_run_goes_on_and_gives_the_same_bytes(
    manifest: Path, quantizer: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = CodeStoreWriter.write_shard

    def interrupt(self: CodeStoreWriter, index: int, ids: Sequence[str], codes: Any) -> None:
        if index == 2:
            raise KeyboardInterrupt
        write_shard(self, index, ids, codes)

    with monkeypatch.context() as context:
        context.setattr(CodeStoreWriter, "write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _encode(manifest, quantizer, tmp_path)

    first = tmp_path / "shard-00000.arrow"
    written = first.stat().st_mtime_ns
    _encode(manifest, quantizer, tmp_path)

    assert first.stat().st_mtime_ns == written
    assert _read_bytes(tmp_path) == _read_bytes(store)


def test_damaged_shard_is_made_again(manifest: Path, quantizer: Path, store: Path, tmp_path: Path) -> None:
    for name, data in _read_bytes(store).items():
        (tmp_path / name).write_bytes(data[: len(data) // 2] if name == "shard-00001.arrow" else data)
    _encode(manifest, quantizer, tmp_path)

    assert _read_bytes(tmp_path) == _read_bytes(store)


def test_unusable_files_are_left_out_and_listed(quantizer: Path, tmp_path: Path) -> None:
    rows = read_manifest(DATA_FOLDER / "speech.tsv")[:3]
    (tmp_path / "empty.wav").write_bytes(b"")
    manifest = _write(
        tmp_path / "speech.tsv",
        [
            _line("missing", tmp_path / "no.wav", 16000),
            _line("empty", tmp_path / "empty.wav", 16000),
            _line(rows[0].id, rows[0].path, rows[0].num_samples),
            _line("changed", rows[1].path, rows[1].num_samples + 1),
            _line("short", rows[2].path, 319),
        ],
    )
    _encode(manifest, quantizer, tmp_path / "store")
    failures = dict(line.split("\t") for line in (tmp_path / "store" / "failed.tsv").read_text().splitlines()[1:])

    assert CodeStore(tmp_path / "store").ids() == [rows[0].id]
    assert list(failures) == ["missing", "empty", "changed", "short"]
    assert "there is no such file" in failures["missing"]
    assert f"gives {rows[1].num_samples} samples at 16000 Hz, but" in failures["changed"]
    assert "too short for one frame of whisper_tiny_en:1" in failures["short"]


def test_run_ends_with_one_line_when_too_many_files_are_unusable(
    quantizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _write(tmp_path / "a.tsv", [_line(name, tmp_path / f"{name}.wav", 16000) for name in "abcdef"])
    arguments = _arguments(manifest, quantizer, tmp_path / "store", "corpus.max_failures=4")
    code, lines = call_recipe(MvqEncodeRecipe(), arguments, monkeypatch, capsys)

    # The files of shards that are finished count.
    assert code == 2
    assert len(lines) == 1
    assert "6 files cannot be used, more than `corpus.max_failures`" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "teacher.layer=2",
            "must be of teacher whisper_tiny_en:2 (width 384), but is of whisper_tiny_en:1 (width 384)",
        ),
        ("quantizer.path=/no/such/folder", "/no/such/folder"),
        ("corpus.rows_per_shard=3", "holds codes of another encoding"),
        ("corpus.manifest=/no/such.tsv", "/no/such.tsv: the manifest cannot be read"),
    ],
)
def test_run_ends_with_one_line_when_configured_wrongly(
    manifest: Path,
    quantizer: Path,
    store: Path,
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = call_recipe(MvqEncodeRecipe(), _arguments(manifest, quantizer, store, change), monkeypatch, capsys)

    assert code != 0
    assert len(lines) == 1
    assert message in lines[0]


def test_run_ends_with_one_line_when_the_quantizer_is_of_another_width(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantizer = _save_quantizer(tmp_path / "quantizer", "", dim=64)
    arguments = _arguments(manifest, quantizer, tmp_path / "store")
    code, lines = call_recipe(MvqEncodeRecipe(), arguments, monkeypatch, capsys)

    assert code == 2
    assert len(lines) == 1
    assert "(width 384), but is of an unnamed teacher (width 64)" in lines[0]


def test_run_ends_with_one_line_when_the_folder_holds_codes_of_another_quantizer(
    manifest: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MvqQuantizerConfig(dim=384, num_codebooks=2, normalize=False)
    torch.manual_seed(1)
    save_quantizer_asset(tmp_path, create_mvq_quantizer(config), config, "other_quantizer")
    code, lines = call_recipe(MvqEncodeRecipe(), _arguments(manifest, tmp_path, store), monkeypatch, capsys)

    assert code == 2
    assert len(lines) == 1
    assert "holds codes of another encoding (quantizer: " in lines[0]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(manifest: Path, quantizer: Path, store: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, *torchrun(2)]
    command = [*launcher, "-m", "recipes.mvq.encode", *_arguments(manifest, quantizer, tmp_path), "--no-rich"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stderr[-2000:]
    assert _read_bytes(tmp_path) == _read_bytes(store)

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.device import CPU

from recipes.extract.recipe import ExtractRecipe
from slurm.stages import torchrun
from spear_plugin.data.audio import read_audio
from spear_plugin.data.feature_writer import FeatureStoreWriter, StoredFeatures
from spear_plugin.data.features import FeatureStore, FeatureStoreError
from spear_plugin.data.manifest import read_manifest
from spear_plugin.models.spear import SpearFeatures, get_spear_model_hub
from spear_plugin.teachers import TeacherConfig, load_teacher
from tests.common import DATA_FOLDER, assert_close, assert_equal
from tests.recipes.common import call_recipe, find_run_card, save_run
from tests.unit.models.spear.test_released import narrow_config

ROOT = Path(__file__).parents[2]
ROWS = read_manifest(DATA_FOLDER / "speech.tsv")[:7]

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has three layers of width 32."""
    return save_run(tmp_path_factory.mktemp("model") / "run", seed=4, config=narrow_config())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven real prompts, in place."""
    path = tmp_path_factory.mktemp("corpus") / "speech.tsv"
    return write_rows(path, [f"{row.id}\t{row.path}\t{row.num_samples}\t{row.sample_rate}" for row in ROWS])


@pytest.fixture
def extract(
    run: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Extract from the model and the manifest, unless the options say otherwise, in shards of two or three prompts."""

    def call(*options: str, out: str = "out") -> tuple[int, list[str]]:
        arguments = make_arguments(tmp_path / out, run, manifest, *options)
        return call_recipe(ExtractRecipe(), arguments, monkeypatch, capsys)

    return call


def write_rows(path: Path, lines: list[str]) -> Path:
    text = "\n".join(["id\tpath\tnum_samples\tsample_rate\tdomain", *(f"{line}\tspeech" for line in lines)])
    path.write_text(text + "\n")
    return path


def make_arguments(out: Path, run: Path, manifest: Path, *options: str) -> list[str]:
    shard_seconds = 1.5 * max(row.duration for row in ROWS)
    return [
        str(out), "--config", f"source.checkpoint={run}", f"corpus.manifest={manifest}",
        f"corpus.max_shard_seconds={shard_seconds:.2f}", *options,
    ]  # fmt: skip


def extract_alone(run: Path, path: Path) -> SpearFeatures:
    """Return what the model itself gives for one file."""
    model = get_spear_model_hub().load_model(find_run_card(run, "last_checkpoint"), device=CPU).eval()
    waveform = torch.from_numpy(read_audio(path))
    with torch.inference_mode():
        return model.extract_features(waveform[None], torch.tensor([waveform.numel()]))


def assert_same_store(folder: Path, other: Path, *, atol: float = 0.0) -> None:
    store, expected = FeatureStore(folder), FeatureStore(other)
    assert store.meta == expected.meta
    assert list(store) == list(expected)
    for id_ in store:
        assert_close(store[id_], expected[id_], atol=atol, rtol=0)


def test_features_are_those_of_each_file_alone_whatever_the_batch(extract: Call, run: Path, tmp_path: Path) -> None:
    wholes = ("corpus.max_shard_seconds=600", "corpus.max_batch_seconds=600")
    assert extract("layers=all", *wholes) == (0, [])
    assert extract("layers=all", "corpus.max_batch_seconds=0.1", out="alone") == (0, [])
    assert extract(out="last") == (0, [])
    store, alone, last = (FeatureStore(tmp_path / name) for name in ("out", "alone", "last"))
    assert (store.meta.layers, store.meta.num_shards) == ([0, 1, 2], 1)
    assert alone.meta.num_shards > 2
    assert list(store) == list(alone) == [row.id for row in ROWS]
    assert (last.meta.layers, last.meta.dim, last.meta.frame_rate_hz, last.meta.first_centre) == (
        "last",
        32,
        50.0,
        0.045,
    )
    for row in ROWS:
        expected = extract_alone(run, row.path)
        for features in (store, alone):
            assert features[row.id].shape == (3, expected.last.size(1), 32)
            assert_close(features[row.id], torch.cat(expected.layers), atol=1e-4, rtol=0)
            assert features.num_frames(row.id) == expected.last.size(1)
        assert_close(last[row.id], expected.last[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_layers_precision_pooling_and_format_can_be_chosen(extract: Call, tmp_path: Path, file_format: str) -> None:
    chosen = ("layers=[0, 2]", f"output.format={file_format}")
    assert extract(*chosen) == (0, [])
    assert extract(*chosen, "output.dtype=float16", "output.pooling=mean", out="means") == (0, [])
    store, means = FeatureStore(tmp_path / "out"), FeatureStore(tmp_path / "means")
    for row in ROWS:
        assert means[row.id].dtype == torch.float16
        assert_equal(means[row.id], store[row.id].mean(dim=1).half())
        assert means.num_frames(row.id) == store[row.id].size(1)
    if file_format == "npz":
        with np.load(tmp_path / "out" / "features" / f"{ROWS[0].id}.npz") as arrays:
            assert_equal(torch.from_numpy(arrays["features"]), store[ROWS[0].id])


def test_a_teacher_and_log_mel_are_sources_too(extract: Call, tmp_path: Path) -> None:
    assert extract("source.kind=log_mel", "layers=all", out="mel") == (0, [])
    assert extract("source.kind=teacher", "source.teacher.layer=1", out="teacher") == (0, [])
    mel, store = FeatureStore(tmp_path / "mel"), FeatureStore(tmp_path / "teacher")
    row = ROWS[0]
    assert mel[row.id].shape == (1, (row.num_samples + 80) // 160 // 2, 256)
    waveform = torch.from_numpy(read_audio(row.path))
    teacher = load_teacher(TeacherConfig(layer=1), device=CPU)
    frames = teacher(waveform[None], torch.tensor([waveform.numel()])).frames[0]
    assert_close(store[row.id], frames, atol=1e-4, rtol=1e-4)
    assert store.meta.source.startswith("teacher:whisper_tiny_en:1:")


@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_an_interrupted_run_goes_on_and_gives_the_same_features(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    option = f"output.format={file_format}"
    assert extract(option, out="whole") == (0, [])
    write_shard = FeatureStoreWriter.write_shard
    written: list[str] = []

    def interrupt(self: FeatureStoreWriter, index: int, features: Mapping[str, StoredFeatures]) -> None:
        if index == 2 and not written.count("interrupted"):
            written.append("interrupted")
            raise RuntimeError("interrupted")
        write_shard(self, index, features)
        written.append(str(index))

    monkeypatch.setattr(FeatureStoreWriter, "write_shard", interrupt)
    code, _ = extract(option)
    assert code == 1
    with pytest.raises(FeatureStoreError, match=r"index\.tsv: there is no such file\. The store is unfinished"):
        FeatureStore(tmp_path / "out")
    assert extract(option) == (0, [])
    num_shards = FeatureStore(tmp_path / "out").meta.num_shards
    assert num_shards > 3
    assert written == ["0", "1", "interrupted", *(str(index) for index in range(2, num_shards))]
    assert_same_store(tmp_path / "out", tmp_path / "whole")

    # A damaged file is found and its shard made again, and no other.
    file = sorted((tmp_path / "out").rglob(f"*.{file_format}"))[0]
    file.write_bytes(file.read_bytes()[:-8])
    written.clear()
    assert extract(option) == (0, [])
    assert len(written) == 1
    assert_same_store(tmp_path / "out", tmp_path / "whole")


def test_other_features_in_the_same_folder_are_refused_in_one_line(extract: Call) -> None:
    assert extract() == (0, [])
    for option, message in (
        ("layers=all", "layers: last, not [0, 1, 2]"),
        ("output.dtype=float16", "dtype: float32, not float16"),
        ("source.kind=log_mel", "source: spear:"),
        ("corpus.max_shard_seconds=600", "max_shard_seconds: "),
        (f"corpus.manifest={DATA_FOLDER / 'audio.tsv'}", "manifest: "),
    ):
        code, lines = extract(option)
        assert (code, len(lines)) == (2, 1)
        assert "holds features of another extraction" in lines[0]
        assert message in lines[0]


def test_a_folder_is_scanned_once_and_its_bad_files_are_listed(extract: Call, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    for index, row in enumerate(ROWS[:3]):
        soundfile.write(folder / "deep" / f"clip{index}.wav", read_audio(row.path), 16000, subtype="FLOAT")
    (folder / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "short.wav", np.zeros(800, dtype=np.float32), 16000)
    options = (f"corpus.manifest={folder}", "output.format=npz")
    assert extract(*options) == (0, [])
    store = FeatureStore(tmp_path / "out")
    assert list(store) == ["deep/clip0", "deep/clip1", "deep/clip2"]
    failures = dict(line.split("\t") for line in (tmp_path / "out" / "failed.tsv").read_text().splitlines()[1:])
    assert failures.keys() == {"broken", "short"}
    assert "broken.wav: is not audio in a format" in failures["broken"]
    assert "short.wav: lasts 0.050 s, too short for one frame of SPEAR" in failures["short"]
    assert extract(*options) == (0, [])

    shutil.copy(folder / "deep" / "clip0.wav", folder / "new.wav")
    code, lines = extract(*options)
    assert (code, len(lines)) == (2, 1)
    assert f"{folder}: holds other files than" in lines[0]
    code, lines = extract(*options, "corpus.max_failures=0", out="strict")
    assert (code, len(lines)) == (2, 1)
    assert "1 files cannot be used, more than `corpus.max_failures`" in lines[0]


def test_a_file_with_features_beyond_float16_is_left_out(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "recipes.features.LogMelSource.extract", lambda _, x, n: ([torch.full((*x.shape, 256), 7e4)], n)
    )
    row = ROWS[0]
    manifest = write_rows(tmp_path / "a.tsv", [f"a\t{row.path}\t{row.num_samples}\t{row.sample_rate}"])
    options = (f"corpus.manifest={manifest}", "source.kind=log_mel", "output.pooling=mean")
    assert extract(*options, "output.dtype=float16") == (0, [])
    assert "features that are no finite float16 numbers" in (tmp_path / "out" / "failed.tsv").read_text()
    assert len(FeatureStore(tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["layers=first"], "`layers` must be all, last or a list such as [0, 5], but is 'first'"),
        (["layers=[2, 1]"], "`layers` must be indices from 0, ascending, each once, but are [2, 1]"),
        (["layers=[1, 3]"], "`layers` must be below 3, the layers of SPEAR, but are [1, 3]"),
        (["output.dtype=int8"], "`dtype` must be one of float32, float16, but is 'int8'"),
        (["source.kind=untrained"], "`kind` must be one of model, teacher, log_mel, but is 'untrained'"),
        (["source.checkpoint=nowhere"], "`source.checkpoint`: must be the name of a card"),
        (["corpus.manifest=/no/such.tsv"], "/no/such.tsv: the manifest cannot be read"),
        (["corpus.manifest={empty}"], "holds no audio file"),
        (["corpus.manifest={climbing}", "output.format=npz"], "The id '../a' cannot be the name of a file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(extract: Call, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    climbing = write_rows(tmp_path / "climbing.tsv", [f"../a\t{ROWS[0].path}\t16000\t16000"])
    code, lines = extract(*(option.format(empty=tmp_path / "empty", climbing=climbing) for option in options))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_a_store_tells_what_is_wrong_with_it(extract: Call, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"meta\.json: there is no such file\. Make the store with"):
        FeatureStore(tmp_path / "out")
    assert extract() == (0, [])
    store = FeatureStore(tmp_path / "out")
    assert ROWS[0].id in store
    with pytest.raises(FeatureStoreError, match=r"has no features of 'nobody'\. Its index\.tsv names the ids"):
        store["nobody"]
    (tmp_path / "out" / "shard-00000.safetensors").write_bytes(b"")
    with pytest.raises(FeatureStoreError, match=r"shard-00000\.safetensors: cannot be read"):
        store[ROWS[0].id]
    (tmp_path / "out" / "index.tsv").write_text("id\n")
    with pytest.raises(FeatureStoreError, match=r"index\.tsv: cannot be read"):
        FeatureStore(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_same_features(extract: Call, run: Path, manifest: Path, tmp_path: Path) -> None:
    assert extract() == (0, [])
    launcher = [sys.executable, *torchrun(2)]
    arguments = make_arguments(tmp_path / "two", run, manifest)
    result = subprocess.run(
        [*launcher, "-m", "recipes.extract", *arguments, "--no-rich"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    # Sums depend on the number of threads, which torchrun sets to one.
    assert_same_store(tmp_path / "two", tmp_path / "out", atol=1e-4)

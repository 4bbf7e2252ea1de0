from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.recipe.run import run
from safetensors.torch import load_file

import recipes.mvq.train.frames as frames_module
import recipes.mvq.train.recipe as train_recipe
from recipes.mvq.train.config import FrameCorpusSection, MvqTrainConfig, QuantizerSection
from recipes.mvq.train.frames import collect_frames
from recipes.mvq.train.recipe import MvqTrainRecipe, MvqTrainTask
from recipes.mvq.train.storage import FrameBlocks
from spear_plugin.data.manifest import ManifestRow, ManifestTable, read_manifest, write_manifest
from spear_plugin.quantizers import (
    QuantizerProgress,
    QuantizerTrainingConfig,
    load_quantizer,
    load_quantizer_config,
    quantizer_identity,
    relative_error,
)
from spear_plugin.quantizers.kmeans_training import KMeansTrainingConfig
from spear_plugin.teachers import Teacher, TeacherConfig, load_teacher
from tests.common import DATA_FOLDER, assert_close, assert_equal
from tests.recipes.common import call_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six real prompts beside their audio."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = read_manifest(DATA_FOLDER / "speech.tsv")[:6]
    for row in rows:
        shutil.copy(row.path, folder)
    return _write(folder / "speech.tsv", rows)


def _write(path: Path, rows: Sequence[ManifestRow]) -> Path:
    header = "id\tpath\tnum_samples\tsample_rate\tdomain\n"
    lines = [f"{row.id}\t{row.path.name}\t{row.num_samples}\t{row.sample_rate}\tspeech\n" for row in rows]
    path.write_text(header + "".join(lines))
    return path


def _as_table(rows: Sequence[ManifestRow], folder: Path) -> ManifestTable:
    write_manifest(folder / "rows.tsv", rows)
    return read_manifest(folder / "rows.tsv")


def _config(manifest: Path, *, num_steps: int = 12) -> MvqTrainConfig:
    return MvqTrainConfig(
        teacher=TeacherConfig(layer=1),
        corpus=FrameCorpusSection(manifest=manifest, max_frames=300, max_frames_per_file=80),
        quantizer=QuantizerSection(num_codebooks=2, compare_num_codebooks=[1]),
        training=QuantizerTrainingConfig(phase_one_steps=num_steps, phase_two_steps=num_steps, batch_frames=32),
        publish_metrics_every_n_steps=1,
        checkpoint_every_n_steps=5,
    )


def _arguments(manifest: Path, folder: Path, *more: str) -> list[str]:
    settings = (
        "teacher.layer=1", f"corpus.manifest={manifest}", "corpus.max_frames=100", "training.phase_one_steps=1",
        "training.phase_two_steps=1", "training.batch_frames=16", "quantizer.num_codebooks=1",
    )  # fmt: skip
    return [str(folder), "--config", *settings, *more]


def _make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _collect(teacher: Teacher, rows: Sequence[ManifestRow], folder: Path, max_batch_seconds: float) -> torch.Tensor:
    section = FrameCorpusSection(max_frames=250, max_frames_per_file=60, max_batch_seconds=max_batch_seconds)

    return _collect_section(teacher, rows, folder, section)


def _collect_section(
    teacher: Teacher, rows: Sequence[ManifestRow], folder: Path, section: FrameCorpusSection, *, name: str = "frames"
) -> torch.Tensor:
    return collect_frames(
        teacher, _as_table(rows, folder), section, seed=1, device=torch.device("cpu"), folder=folder,
        blocks=FrameBlocks(folder / name, {"seed": 1}), report=lambda num_frames: None,
    )  # fmt: skip


def test_training_writes_a_quantizer_and_what_it_does_to_unseen_frames(corpus: Path, tmp_path: Path) -> None:
    run(MvqTrainRecipe(), _config(corpus), tmp_path, no_rich=True)

    quantizer = load_quantizer(tmp_path / "quantizer")
    config = load_quantizer_config(tmp_path / "quantizer")
    report = json.loads((tmp_path / "report.json").read_text())
    frames = load_file(tmp_path / "frames.safetensors")["frames"]
    metrics = (tmp_path / "metrics" / "train" / "codebooks_2.jsonl").read_text().splitlines()

    assert (config.teacher, config.dim, config.frame_rate_hz) == ("whisper_tiny_en:1", 384, 50.0)
    assert frames.shape == (300, 384)
    assert frames.dtype == torch.float16
    assert report["num_valid_frames"] == 15
    assert report["quantizer"] == quantizer_identity(quantizer)
    assert report["relative_error"] == pytest.approx(relative_error(quantizer, frames[-15:]), rel=1e-5)
    assert report["error_by_num_codebooks"].keys() == {"1", "2"}
    assert report["error_by_num_codebooks"]["2"] == report["relative_error"]
    assert all(0 < entropy <= 8 for entropy in report["entropy_bits"])
    assert len(metrics) == 25
    # Statistics are those of the frames that were trained on.
    assert_close(quantizer.mean, frames[:-15].float().mean(dim=0), atol=1e-4)


def test_interrupted_training_ends_with_the_same_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(MvqTrainRecipe(), _config(corpus), tmp_path / "whole", no_rich=True)

    describe: Callable[[QuantizerProgress], dict[str, float]] = train_recipe._describe_step
    for step in (8, 18):  # in either phase, not where a checkpoint is written

        def interrupt(state: QuantizerProgress, last_step: int = step) -> dict[str, float]:
            if state.num_steps_done == last_step:
                raise KeyboardInterrupt
            return describe(state)

        monkeypatch.setattr(train_recipe, "_describe_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(MvqTrainRecipe(), _config(corpus), tmp_path / "parts", no_rich=True)

    monkeypatch.setattr(train_recipe, "_describe_step", describe)
    run(MvqTrainRecipe(), _config(corpus), tmp_path / "parts", no_rich=True)

    metrics = (tmp_path / "parts" / "metrics" / "train" / "codebooks_1.jsonl").read_text().splitlines()
    weights = [load_file(tmp_path / name / "quantizer" / "quantizer.safetensors") for name in ("whole", "parts")]

    # Steps 5 and 15 are the checkpoints that it went on from.
    assert [json.loads(line)["Step"] for line in metrics] == [*range(1, 8), *range(6, 18), *range(16, 26)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert_equal(value, weights[1][key])


def test_frames_do_not_depend_on_batches_or_on_the_order_of_the_manifest(corpus: Path, tmp_path: Path) -> None:
    teacher = load_teacher(TeacherConfig(layer=1), device=torch.device("cpu"))
    rows = read_manifest(corpus)
    frames = _collect(teacher, rows, _make(tmp_path / "a"), max_batch_seconds=100.0)
    others = _collect(teacher, rows[::-1], _make(tmp_path / "b"), max_batch_seconds=3.0)

    assert frames.shape == (250, 384)
    assert_close(frames.float(), others.float(), atol=2e-2)


def test_frames_are_collected_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(corpus, num_steps=2)
    run(MvqTrainRecipe(), config, tmp_path, no_rich=True)
    (tmp_path / "report.json").unlink()
    monkeypatch.delattr(train_recipe, "collect_frames")
    run(MvqTrainRecipe(), config, tmp_path, no_rich=True)

    assert (tmp_path / "report.json").exists()


def test_only_files_whose_frames_are_needed_are_embedded(corpus: Path, tmp_path: Path) -> None:
    rows = read_manifest(corpus)
    teacher = load_teacher(TeacherConfig(layer=1), device=torch.device("cpu"))
    seen: list[int] = []

    def embed(waveforms: torch.Tensor, lengths: torch.Tensor) -> None:
        seen.extend(lengths.tolist())

    teacher.register_forward_pre_hook(lambda _, arguments: embed(*arguments))
    section = FrameCorpusSection(max_frames=90, max_frames_per_file=60)
    frames = _collect_section(teacher, rows, tmp_path, section)
    assert len(frames) == 90
    assert len(seen) == 2 < len(rows)


def test_frames_collected_by_a_killed_run_are_kept_and_the_others_are_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "_MAX_ROWS_AT_ONCE", 2)
    teacher = load_teacher(TeacherConfig(name="log_mel"), device=torch.device("cpu"))
    rows = list(read_manifest(corpus))
    section = FrameCorpusSection(max_frames=10_000, max_frames_per_file=30)
    rows[1] = dataclasses.replace(rows[1], path=tmp_path / "nowhere.wav")
    whole = _collect_section(teacher, rows, tmp_path, section, name="whole")
    failed = (tmp_path / "failed.tsv").read_text()
    assert "nowhere.wav" in failed

    seen: list[int] = []

    def interrupt(waveforms: torch.Tensor, lengths: torch.Tensor) -> None:
        seen.extend(lengths.tolist())
        if len(seen) > 4:
            raise KeyboardInterrupt

    hook = teacher.register_forward_pre_hook(lambda _, arguments: interrupt(*arguments))
    (tmp_path / "failed.tsv").unlink()
    with pytest.raises(KeyboardInterrupt):
        _collect_section(teacher, rows, tmp_path, section)
    assert len(list((tmp_path / "frames").iterdir())) == 2
    hook.remove()
    seen.clear()
    teacher.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[1].tolist()))
    assert_equal(_collect_section(teacher, rows, tmp_path, section), whole)
    assert len(seen) in (1, 2)  # the last block alone
    assert (tmp_path / "failed.tsv").read_text() == failed


def test_a_block_of_frames_that_is_damaged_or_of_other_settings_is_named(corpus: Path, tmp_path: Path) -> None:
    teacher = load_teacher(TeacherConfig(name="log_mel"), device=torch.device("cpu"))
    rows = read_manifest(corpus)
    section = FrameCorpusSection(max_frames=100)
    _collect_section(teacher, rows, tmp_path, section)
    path = tmp_path / "frames" / "block-00000.safetensors"
    with pytest.raises(RecipeError, match=r"block-00000.* was made with other settings \(seed: 1, not 2\)"):
        FrameBlocks(tmp_path / "frames", {"seed": 2}).read(0)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RecipeError, match=r"block-00000.* is damaged .* Delete the file"):
        _collect_section(teacher, rows, tmp_path, section)


def test_a_budget_of_bytes_limits_the_frames(corpus: Path, tmp_path: Path) -> None:
    teacher = load_teacher(TeacherConfig(name="log_mel"), device=torch.device("cpu"))
    rows = read_manifest(corpus)
    size = 2 * teacher.dim  # of a frame
    limited = _collect_section(teacher, rows, _make(tmp_path / "a"), FrameCorpusSection(max_bytes=120 * size + 1))
    counted = _collect_section(teacher, rows, _make(tmp_path / "b"), FrameCorpusSection(max_frames=120))
    assert limited.nbytes == 120 * size
    assert_equal(limited, counted)
    assert FrameCorpusSection(max_frames=150, max_bytes=1000 * size).limit_frames(teacher.dim) == 150
    with pytest.raises(RecipeError, match=r"`corpus.max_bytes` must hold at least 100 frames of 512 bytes, but is 512"):
        FrameCorpusSection(max_bytes=512).limit_frames(teacher.dim)


def test_interrupted_kmeans_ends_with_the_same_centres(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(corpus)
    config.teacher, config.quantizer = TeacherConfig(name="log_mel"), QuantizerSection(kind="kmeans", codebook_size=30)
    config.kmeans = KMeansTrainingConfig(num_steps=12, batch_frames=100)
    run(MvqTrainRecipe(), config, tmp_path / "whole", no_rich=True)

    count_step = MvqTrainTask.count_step
    num_steps = 0

    def interrupt(task: MvqTrainTask) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 8:  # not where a checkpoint is written
            raise KeyboardInterrupt
        count_step(task)

    monkeypatch.setattr(MvqTrainTask, "count_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(MvqTrainRecipe(), config, tmp_path / "parts", no_rich=True)
    assert not (tmp_path / "parts" / "frames").exists()
    run(MvqTrainRecipe(), config, tmp_path / "parts", no_rich=True)

    assert num_steps == 8 + 7  # from step 5 on
    whole, parts = (load_file(tmp_path / name / "quantizer" / "quantizer.safetensors") for name in ("whole", "parts"))
    for key, value in whole.items():
        assert_equal(parts[key], value)


def test_unusable_files_are_left_out_and_listed(corpus: Path, tmp_path: Path) -> None:
    rows = read_manifest(corpus)
    for row in rows:
        shutil.copy(row.path, tmp_path)
    (tmp_path / rows[2].path.name).write_bytes(b"")
    config = _config(_write(tmp_path / "a.tsv", rows), num_steps=2)
    config.corpus.max_frames = 10_000  # more than there are: every file is read
    run(MvqTrainRecipe(), config, tmp_path / "out", no_rich=True)
    listed = (tmp_path / "out" / "failed.tsv").read_text().splitlines()

    assert listed[0] == "id\tproblem"
    assert [line.split("\t")[0] for line in listed[1:]] == [rows[2].id]


def test_run_ends_with_one_line_when_settings_changed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_recipe(MvqTrainRecipe(), _arguments(corpus, tmp_path), monkeypatch, capsys) == (0, [])

    for change, named in (
        ("corpus.max_frames=101", "frames.safetensors: was made with other settings (max_frames: 100, not 101)"),
        ("training.lr=0.1", "codebooks_1.pt: was made with other settings (training.lr: 0.005, not 0.1)"),
    ):
        code, lines = call_recipe(MvqTrainRecipe(), _arguments(corpus, tmp_path, change), monkeypatch, capsys)

        assert code == 2
        assert len(lines) == 1
        assert named in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("corpus.manifest=/no/such.tsv", "/no/such.tsv: the manifest cannot be read"),
        ("corpus.manifest=null", "`manifest` must be set to the path of a manifest"),
        ("teacher.name=wavlm", "`teacher.name` must be one of whisper, aisfx"),
        ("teacher.layer=9", "`layer` must be from 0 to 4, but is 9"),
        ("quantizer.num_codebooks=3", "must be a power of two up to 128, but is 3"),
        ("quantizer.codebooks=3", "codebooks"),
        ("quantizer.kind=vq", "`kind` must be one of mvq, kmeans, random_projection, heads, but is 'vq'"),
        ("quantizer.codebook_size=100", "must be 4, 16, 64 or 256 when `kind` is mvq, but is 100"),
        ("quantizer.projection_dim=8", "`projection_dim` must not be set when `kind` is mvq"),
        ("quantizer.compare_num_codebooks=[3]", "must be a power of two up to 128, but is 3"),
    ],
)
def test_run_ends_with_one_line_when_configured_wrongly(
    corpus: Path,
    tmp_path: Path,
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = call_recipe(MvqTrainRecipe(), _arguments(corpus, tmp_path, change), monkeypatch, capsys)

    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("kmeans", "num_codebooks=2"), "`num_codebooks` must be 1 when `kind` is kmeans, but is 2"),
        (("kmeans", "codebook_size=40000"), "`codebook_size` must be from 2 to 32768, but is 40000"),
        (("kmeans", "codebook_size=4000"), "gives 95 frames to train on, fewer than the 4000 clusters"),
        (("kmeans", "compare_num_codebooks=[2]"), "`compare_num_codebooks` must be empty when `kind` is kmeans"),
        (("random_projection", "projection_dim=0"), "`projection_dim` must be at least 1, but is 0"),
    ],
)
def test_run_ends_with_one_line_when_the_kind_does_not_go_with_its_sizes(
    corpus: Path,
    tmp_path: Path,
    changes: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [f"quantizer.kind={changes[0]}", "quantizer.num_codebooks=null", f"quantizer.{changes[1]}"]
    code, lines = call_recipe(MvqTrainRecipe(), _arguments(corpus, tmp_path, *settings), monkeypatch, capsys)

    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("section", "family"),
    [
        (QuantizerSection(kind="kmeans", codebook_size=30), "kmeans_quantizer"),
        (QuantizerSection(kind="random_projection", codebook_size=8, num_codebooks=2), "random_projection_quantizer"),
    ],
)
def test_other_kinds_are_trained_and_reported_alike(
    corpus: Path, tmp_path: Path, section: QuantizerSection, family: str
) -> None:
    config = _config(corpus)
    config.quantizer, config.kmeans = section, KMeansTrainingConfig(num_steps=5, batch_frames=100)
    run(MvqTrainRecipe(), config, tmp_path, no_rich=True)

    quantizer, asset = load_quantizer(tmp_path / "quantizer"), load_quantizer_config(tmp_path / "quantizer")
    report = json.loads((tmp_path / "report.json").read_text())
    frames = load_file(tmp_path / "frames.safetensors")["frames"]

    assert f"model_family: {family}" in (tmp_path / "quantizer" / "quantizer.yaml").read_text()
    assert (asset.teacher, asset.dim, quantizer.codebook_size) == ("whisper_tiny_en:1", 384, section.codebook_size)
    assert report["quantizer"] == quantizer_identity(quantizer)
    assert report["relative_error"] == pytest.approx(relative_error(quantizer, frames[-15:]), rel=1e-5)
    assert 0.1 < report["relative_error"] < 1.5
    assert "error_by_num_refinements" not in report
    assert len(report["num_used_entries"]) == quantizer.num_codebooks
    assert_close(quantizer.mean, frames[:-15].float().mean(dim=0), atol=1e-4)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "mvq").rglob("*.yaml")), ids=lambda path: path.stem)
def test_preset_is_a_valid_configuration(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dump-config", "--config-file", str(path), "--config", "corpus.manifest=a.tsv"]

    assert call_recipe(MvqTrainRecipe(), arguments, monkeypatch, capsys) == (0, [])

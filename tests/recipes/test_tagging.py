"""Fine-tuning for audio tagging, on tones with labels; and manifests of labelled tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fairseq2.assets import AssetCard
from fairseq2.device import CPU

from recipes.corpus.console import CorpusError
from recipes.corpus.examples import Example, write_examples
from recipes.corpus.task_manifests import main as write_task_manifests
from recipes.tagging.evaluate.recipe import TaggingEvaluateRecipe
from recipes.tagging.finetune.mixup import Mixup
from recipes.tagging.finetune.recipe import TaggingFinetuneRecipe
from recipes.tagging.finetune.unit import MeanAveragePrecision
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.evaluation import mean_average_precision
from spear_plugin.models.downstream import get_tagging_model_hub
from tests.common import assert_close, assert_equal
from tests.recipes.common import call_recipe, find_run_card, read_steps
from tests.recipes.downstream import SHORT_RUN, save_spear_run, save_spidr_run, write_corpus, write_tones

TINY_DEMO = "recipes/tagging/finetune/configs/tiny_demo.yaml"

Call = Callable[..., tuple[int, list[str]]]


def write_labelled(folder: Path) -> list[ManifestRow]:
    """Write eight tones; two have the label `bell`, six `dog`, and one of these both."""
    rows = write_tones(folder, list("abcdefgh"), label="dog", seconds=0.5)
    rows[0], rows[1] = replace(rows[0], label="bell"), replace(rows[1], label="dog|bell")
    return rows


@pytest.fixture
def finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the recipe on eight tones."""
    corpus = write_corpus(tmp_path / "train.tsv", write_labelled(tmp_path / "audio"))

    def run(*options: str, train: str = corpus, config_file: str = TINY_DEMO) -> tuple[int, list[str]]:
        data = (f"dataset.config_overrides.train={train}", f"dataset.config_overrides.valid={corpus}")
        arguments = [str(tmp_path / "run"), "--config-file", config_file, "--config", *data, *SHORT_RUN, *options]
        return call_recipe(TaggingFinetuneRecipe(), arguments, monkeypatch, capsys)

    return run


def load_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints" / f"step_{step}" / "model").rglob("*.pt")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_a_run_learns_labels_of_its_rows_resumes_exactly_and_loads_by_card(
    family: str, tmp_path: Path, finetune: Call
) -> None:
    source = (save_spear_run if family == "spear" else save_spidr_run)(tmp_path / "pretraining")
    assert finetune(f"encoder.checkpoint={source}") == (0, [])
    run = tmp_path / "run"
    valid = read_steps(run / "metrics" / "valid.jsonl")
    assert sorted(valid) == [2, 4]
    assert 0.0 < valid[4]["Mean Average Precision"] <= 1.0
    assert valid[4]["Loss"] < valid[2]["Loss"]
    card = yaml.safe_load((run / "card.yaml").read_text())
    card["checkpoint"] = str(run / card["checkpoint"])
    model = get_tagging_model_hub().load_model(AssetCard("x", card), device=CPU)
    assert model.config.labels == ["bell", "dog"]
    expected = load_weights(run, 4)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

    # As if it had ended while the encoder was frozen.
    shutil.rmtree(run / "checkpoints" / "step_4")
    assert finetune(f"encoder.checkpoint={source}") == (0, [])
    weights = load_weights(run, 4)
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize("preset", ["audioset_20k", "audioset_2m"])
def test_a_preset_takes_steps(preset: str, tmp_path: Path, finetune: Call) -> None:
    source = f"encoder.checkpoint={save_spear_run(tmp_path / 'pretraining')}"
    options = (source, "dataset.min_seconds=0.1", "encoder.frozen_steps=0", "regime.num_steps=2")
    assert finetune(*options, config_file=f"recipes/tagging/finetune/configs/{preset}.yaml") == (0, [])
    assert "Optimizer Parameter Group 0: encoder.model." in (tmp_path / "run" / "logs" / "rank_0.log").read_text()


def test_rows_without_labels_of_the_vocabulary_are_skipped_and_counted(tmp_path: Path, finetune: Call) -> None:
    rows = write_labelled(tmp_path / "audio")
    rows[2], rows[3] = replace(rows[2], label=""), replace(rows[3], label="dog|cat")
    (tmp_path / "labels.txt").write_text("bell\ndog\n")
    corpus = write_corpus(tmp_path / "some.tsv", rows)
    options = ("encoder={family: log_mel}", f"labels={tmp_path / 'labels.txt'}", "regime.num_steps=2")
    assert finetune(*options, train=corpus) == (0, [])
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert "Corpus some: skipping 1 of 8 rows, which have no label: 'c'" in log
    assert "Corpus some: skipping 1 of 8 rows, with a label that is not in the vocabulary: 'd'" in log


@pytest.mark.parametrize(
    ("labels", "pattern"),
    [
        ("bell\nbell\n", "must have at least one label, and each once"),
        ("", "at least one label"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_list_of_labels_is_named_in_one_line(
    labels: str | None, pattern: str, tmp_path: Path, finetune: Call
) -> None:
    if labels is not None:
        (tmp_path / "labels.txt").write_text(labels)
    code, lines = finetune("encoder={family: log_mel}", f"labels={tmp_path / 'labels.txt'}")
    assert code == 2
    assert len(lines) == 1
    assert "labels.txt" in lines[0]
    assert pattern in lines[0]


def test_a_wrong_input_is_named_in_one_line(tmp_path: Path, finetune: Call) -> None:
    unlabelled = write_corpus(tmp_path / "none.tsv", write_tones(tmp_path / "audio", list("ab")))
    spidr = save_spidr_run(tmp_path / "spidr")
    for options, train, pattern in (
        (("encoder={family: log_mel}",), {"train": unlabelled}, "no training row has a label"),
        ((f"encoder.checkpoint={spidr}", "encoder.family=spear"), {}, "must be a model of the family spear, but"),
        (("mixup.probability=2",), {}, "`probability` must be in"),
        (("mixup.alpha=0",), {}, "`alpha` must be positive"),
    ):
        code, lines = finetune(*options, **train)
        assert code == 2, pattern
        assert len(lines) == 1
        assert pattern in lines[0]


def test_mixup_mixes_recordings_and_labels_with_the_same_weights() -> None:
    waveforms, targets = torch.eye(4).repeat_interleave(2, dim=1), torch.eye(4)
    torch.manual_seed(0)
    mixed, lengths, mixed_targets = Mixup(1.0, 0.4)(waveforms, [2, 4, 6, 8], targets)
    assert_close(mixed[:, ::2], mixed_targets)  # each recording is its label's line
    assert_close(mixed_targets.sum(dim=1), torch.ones(4))
    assert not torch.equal(mixed_targets, targets)
    for row, length, own in zip(mixed_targets, lengths, [2, 4, 6, 8], strict=True):
        (parts,) = row.nonzero(as_tuple=True)
        assert length == max(2 * (int(parts.max()) + 1), own)


def test_mixup_is_drawn_from_torchs_generator_and_may_be_off() -> None:
    waveforms, targets = torch.randn(3, 8), torch.eye(3)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(Mixup(1.0, 10.0)(waveforms, [8, 8, 8], targets)[0])
    assert_equal(*drawn)
    assert Mixup(0.0, 10.0)(waveforms, [8, 8, 8], targets)[0] is waveforms


def test_precision_of_processes_together_is_that_of_all_recordings() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 3, generator=generator)
    targets = torch.rand(12, 3, generator=generator) < 0.4
    whole = MeanAveragePrecision(3).update(scores, targets).compute()
    parts = [MeanAveragePrecision(3).update(scores[i : i + 4], targets[i : i + 4]) for i in (0, 4, 8)]
    assert_equal(parts[0].merge_state(parts[1:]).compute(), whole)


@pytest.fixture
def evaluate(
    tmp_path: Path, finetune: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Fine-tune a head on log-mel energies, and call the evaluation of it."""
    assert finetune("encoder={family: log_mel}", "regime.num_steps=2") == (0, [])

    def run(*options: str) -> tuple[int, list[str]]:
        given = (f"checkpoint={tmp_path / 'run'}", "num_resamples=20", "corpus.max_batch_seconds=2", *options)
        arguments = [str(tmp_path / "scores"), "--config", *given]
        return call_recipe(TaggingEvaluateRecipe(), arguments, monkeypatch, capsys)

    return run


def test_an_evaluation_writes_predictions_and_the_precision_of_each_label(tmp_path: Path, evaluate: Call) -> None:
    # Names of different lengths have different noise.
    names, labels = ["a" * length for length in range(1, 7)], ["bell", "bell|dog", *4 * ["dog"]]
    tones = write_tones(tmp_path / "audio", names, seconds=0.5)
    rows = [replace(row, label=label) for row, label in zip(tones, labels, strict=True)]
    rows += write_tones(tmp_path / "audio", ["unlabelled"]) + write_tones(tmp_path / "audio", ["bird"], label="bird")
    rows.append(replace(rows[0], id="gone", path=tmp_path / "gone.flac"))
    write_manifest(tmp_path / "test.tsv", rows)
    assert evaluate(f"corpus.manifest={tmp_path / 'test.tsv'}") == (0, [])

    header, *lines = [line.split("\t") for line in (tmp_path / "scores" / "predictions.tsv").read_text().splitlines()]
    assert header == ["id", "labels", "bell", "dog"]
    assert {line[0]: line[1] for line in lines} == dict(zip(names, labels, strict=True))
    probabilities = np.array([line[2:] for line in lines], dtype=np.float64)
    model = get_tagging_model_hub().load_model(find_run_card(tmp_path / "run", "last_checkpoint"), device=CPU).eval()
    waveform = torch.from_numpy(read_audio(rows[1].path, sample_rate=16_000))
    with torch.inference_mode():
        expected = model(waveform[None], torch.tensor([waveform.numel()])).sigmoid()[0]
    assert_close(torch.from_numpy(probabilities[[line[0] for line in lines].index("aa")]).float(), expected, atol=2e-6)

    targets = np.array([[label in line[1].split("|") for label in ("bell", "dog")] for line in lines])
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (scores["num_recordings"], scores["num_labels"]) == (6, 2)
    assert scores["mean_average_precision"] == pytest.approx(100 * mean_average_precision(probabilities, targets))
    low, high = scores["mean_average_precision_interval"]
    assert low <= scores["mean_average_precision"] <= high
    classes = [line.split("\t") for line in (tmp_path / "scores" / "classes.tsv").read_text().splitlines()[1:]]
    assert [line[:2] for line in classes] == [["bell", "2"], ["dog", "5"]]
    mean = sum(float(line[2]) for line in classes) / 2
    assert mean == pytest.approx(scores["mean_average_precision"], abs=0.01)

    failed = dict(line.split("\t") for line in (tmp_path / "scores" / "failed.tsv").read_text().splitlines()[1:])
    assert failed.keys() == {"unlabelled", "bird", "gone"}
    assert failed["unlabelled"] == "has no label"
    assert failed["bird"] == "has the label 'bird', which the model does not know"


def test_an_evaluation_names_what_is_wrong_in_one_line(tmp_path: Path, evaluate: Call) -> None:
    write_manifest(tmp_path / "test.tsv", write_labelled(tmp_path / "audio"))
    write_manifest(tmp_path / "one.tsv", write_labelled(tmp_path / "audio")[:1])
    write_manifest(tmp_path / "none.tsv", write_tones(tmp_path / "audio", list("ab")))
    spear = save_spear_run(tmp_path / "spear")
    for name, options, pattern in (
        ("test", (f"checkpoint={spear}",), "`checkpoint`: must be a model of the family audio_tagging"),
        ("test", ("checkpoint=null",), "`checkpoint` must be the name of a card or the folder of a run"),
        ("one", (), "one.tsv: must have at least two usable recordings with labels"),
        ("none", ("corpus.max_failures=1",), "none.tsv: 2 files cannot be used"),
    ):
        code, lines = evaluate(f"corpus.manifest={tmp_path / f'{name}.tsv'}", *options)
        assert code == 2, pattern
        assert len(lines) == 1
        assert pattern in lines[0]


def make_example(folder: Path, name: str, **fields: object) -> Example:
    (row,) = write_tones(folder, [name], text=f"text {name}", label="dog")
    return replace(Example.of_row(row, label=row.label, split="train"), **fields)  # type: ignore[arg-type]


def test_a_tasks_splits_become_manifests_with_texts_and_labels(tmp_path: Path) -> None:
    examples = [
        make_example(tmp_path / "audio", name, split=split)
        for name, split in zip("abc", ("train", "valid", "test"), strict=True)
    ]
    write_examples(tmp_path / "task.tsv", examples)
    write_task_manifests([str(tmp_path / "out"), str(tmp_path / "task.tsv")])
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        (row,) = read_manifest(tmp_path / "out" / f"{split}.tsv")
        assert (row.id, row.text, row.label) == (name, f"text {name}", "dog")
        assert row.path == tmp_path / "audio" / f"{name}.flac"


def test_a_task_of_parts_of_files_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    write_examples(tmp_path / "task.tsv", [make_example(tmp_path / "audio", "a", end=0.5)])
    with pytest.raises(CorpusError, match="'a' is a part of its file"):
        write_task_manifests([str(tmp_path / "out"), str(tmp_path / "task.tsv")])
    write_examples(tmp_path / "task.tsv", [make_example(tmp_path / "audio", "a", split="dev")])
    with pytest.raises(CorpusError, match="`split` must be one of"):
        write_task_manifests([str(tmp_path / "out"), str(tmp_path / "task.tsv")])
    (tmp_path / "task.tsv").write_text("id\tpath\n")
    with pytest.raises(CorpusError, match="must have the column"):
        write_task_manifests([str(tmp_path / "out"), str(tmp_path / "task.tsv")])
    with pytest.raises(CorpusError, match=r"nowhere.tsv: cannot be read"):
        write_task_manifests([str(tmp_path / "out"), str(tmp_path / "nowhere.tsv")])

"""Tokenizer, fine-tuning by CTC and evaluation, on tones with texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fairseq2.assets import AssetCard
from fairseq2.device import CPU
from fairseq2.recipe.base import Recipe

from recipes.asr.evaluate.recipe import AsrEvaluateRecipe
from recipes.asr.finetune.recipe import AsrFinetuneRecipe
from recipes.asr.finetune.unit import compute_ctc_loss
from recipes.asr.tokenizer.recipe import TokenizerRecipe
from recipes.text import num_frames_needed, open_tokenizer
from spear_plugin.data.manifest import write_manifest
from spear_plugin.models.downstream import get_ctc_model_hub
from tests.common import assert_close
from tests.recipes.common import call_recipe, find_run_card, read_steps
from tests.recipes.downstream import SHORT_RUN, save_spear_run, save_spidr_run, write_corpus, write_tones

TINY_DEMO = "recipes/asr/finetune/configs/tiny_demo.yaml"
TEXT = "Press one, it's easy."

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a recipe with OUT below the test's folder."""

    def run(recipe: type[Recipe], out: str, *arguments: str) -> tuple[int, list[str]]:
        return call_recipe(recipe(), [str(tmp_path / out), *arguments], monkeypatch, capsys)

    return run


@pytest.fixture
def tokenizer(tmp_path: Path, call: Call) -> Path:
    """A tokenizer of the characters of TEXT."""
    write_corpus(tmp_path / "texts.tsv", write_tones(tmp_path / "audio", ["t"], text=TEXT))
    assert call(TokenizerRecipe, "tokenizer", "--config", f"manifests=[{tmp_path / 'texts.tsv'}]", "kind=char") == (
        0,
        [],
    )
    return tmp_path / "tokenizer"


@pytest.fixture
def finetune(tmp_path: Path, call: Call, tokenizer: Path) -> Call:
    """Call the recipe on six tones."""
    corpus = write_corpus(tmp_path / "train.tsv", write_tones(tmp_path / "audio", list("abcdef"), text=TEXT))

    def run(
        *options: str, train: str = corpus, out: str = "run", config_file: str = TINY_DEMO
    ) -> tuple[int, list[str]]:
        data = (f"dataset.config_overrides.train={train}", f"dataset.config_overrides.valid={corpus}")
        config = (*data, f"tokenizer={tokenizer}", *SHORT_RUN, *options)
        return call(AsrFinetuneRecipe, out, "--config-file", config_file, "--config", *config)

    return run


def load_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints" / f"step_{step}" / "model").rglob("*.pt")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def test_a_tokenizer_writes_what_is_spoken_and_loads_by_folder_and_card(tmp_path: Path, tokenizer: Path) -> None:
    codec = open_tokenizer(str(tokenizer), "`tokenizer`")
    tokens = codec.encode("IT\u2019S  one\u2014press!")
    assert codec.decode(tokens) == "it's one press"
    assert codec.is_writable(tokens)
    assert 0 not in tokens  # the blank
    assert not codec.is_writable(codec.encode("Zebra"))
    assert codec.normalize("Zebra") != codec.decode(codec.encode("Zebra")) == "era"
    assert codec.encode(" ,. ") == []

    card = yaml.safe_load((tokenizer / "card.yaml").read_text())
    assert card["tokenizer_family"] == "char_tokenizer"
    assert (tokenizer / card["tokenizer"]).is_file()


def test_pieces_of_words_fall_back_to_characters_where_there_is_too_little_text(tmp_path: Path, call: Call) -> None:
    texts = ["please enter your number", "please press one", "your number is one"] * 5
    rows = [
        replace(row, text=text)
        for row, text in zip(write_tones(tmp_path / "a", [str(i) for i in range(15)]), texts, strict=True)
    ]
    write_corpus(tmp_path / "texts.tsv", rows)
    sizes = {}
    for size in (20, 5000):
        options = (f"manifests=[{tmp_path / 'texts.tsv'}]", f"vocabulary_size={size}")
        assert call(TokenizerRecipe, f"tokenizer{size}", "--config", *options) == (0, [])
        codec = open_tokenizer(str(tmp_path / f"tokenizer{size}"), "`tokenizer`")
        assert codec.normalize("Your NUMBER") == "your number"
        sizes[size] = codec.vocabulary_size, len(codec.encode("your number"))
    assert sizes[20][0] == 20
    assert sizes[5000][1] == len("▁your▁number")
    assert sizes[20][1] < sizes[5000][1]


def test_a_tokenizer_needs_transcripts(tmp_path: Path, call: Call) -> None:
    write_corpus(tmp_path / "texts.tsv", write_tones(tmp_path / "a", ["x"]))
    code, lines = call(TokenizerRecipe, "tokenizer", "--config", f"manifests=[{tmp_path / 'texts.tsv'}]")
    assert code == 2
    assert len(lines) == 1
    assert "texts.tsv: no row has a transcript" in lines[0]


def test_the_loss_is_that_of_torch_for_each_utterance_and_in_float32() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(2, 9, 5).log_softmax(dim=2)
    targets = [[1, 1, 2], [4]]
    expected = sum(
        torch.nn.functional.ctc_loss(
            log_probs[i, :n], torch.tensor(t), torch.tensor(n), torch.tensor(len(t)), reduction="sum"
        )
        for i, (n, t) in enumerate(zip([9, 6], targets, strict=True))
    )
    assert isinstance(expected, torch.Tensor)
    assert_close(compute_ctc_loss(log_probs, [9, 6], targets), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_ctc_loss(log_probs.bfloat16(), [9, 6], targets).dtype == torch.float32


def test_ctc_needs_a_frame_for_each_token_and_a_blank_between_equal_ones() -> None:
    for tokens in ([1, 2, 3], [1, 1], [2, 2, 2, 1]):
        num_frames = num_frames_needed(tokens)
        log_probs = torch.full((1, num_frames, 4), 0.25).log()
        assert compute_ctc_loss(log_probs, [num_frames], [tokens]) > 0.0
        assert compute_ctc_loss(log_probs, [num_frames - 1], [tokens]) == 0.0  # there is no path


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_a_run_begins_with_the_encoder_thaws_it_and_loads_by_card_and_folder(
    family: str, tmp_path: Path, finetune: Call, call: Call
) -> None:
    source = (save_spear_run if family == "spear" else save_spidr_run)(tmp_path / "pretraining")
    assert finetune(f"encoder.checkpoint={source}", "model.config_overrides.layers=weighted") == (0, [])
    run = tmp_path / "run"
    pretrained, frozen, trained = load_weights(source, 2), load_weights(run, 2), load_weights(run, 4)
    shared = [name for name in pretrained if f"encoder.model.{name}" in frozen]
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(frozen[f"encoder.model.{name}"], pretrained[name]), name
    assert any(not torch.equal(trained[f"encoder.model.{name}"], pretrained[name]) for name in shared)
    assert not torch.equal(frozen["projection.weight"], trained["projection.weight"])
    valid = read_steps(run / "metrics" / "valid.jsonl")
    assert sorted(valid) == [2, 4]
    assert valid[4]["Character Error Rate (CER)"] > 0.0
    assert valid[4]["Loss"] < valid[2]["Loss"]

    hub = get_ctc_model_hub()
    card = yaml.safe_load((run / "card.yaml").read_text())
    card["checkpoint"] = str(run / card["checkpoint"])
    for loaded in (
        hub.load_model(AssetCard("x", card), device=CPU),
        hub.load_model(find_run_card(run, "last_checkpoint")),
    ):
        assert loaded.config.layers == "weighted"
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, trained[name]), name
    assert "after 4 steps" in (run / "README.md").read_text()

    manifest = f"corpus.manifest={tmp_path / 'train.tsv'}"
    for method in ("greedy", "beam"):
        options = (f"checkpoint={run}", manifest, f"decoding.method={method}", "num_resamples=50")
        assert call(AsrEvaluateRecipe, method, "--config", *options) == (0, [])
    scores = json.loads((tmp_path / "greedy" / "scores.json").read_text())
    assert scores["num_recordings"] == 6
    assert scores["cer"] == pytest.approx(valid[4]["Character Error Rate (CER)"], abs=1e-3)
    low, high = scores["cer_interval"]
    assert low <= scores["cer"] <= high
    header, *lines = (tmp_path / "beam" / "transcripts.tsv").read_text().splitlines()
    assert header.split("\t")[:3] == ["id", "reference", "hypothesis"]
    assert [line.split("\t")[:2] for line in lines] == [[name, "press one it's easy"] for name in "abcdef"]


@pytest.mark.parametrize("preset", ["librispeech_100h", "librispeech_960h"])
def test_a_preset_takes_steps_with_a_slower_encoder(preset: str, tmp_path: Path, finetune: Call) -> None:
    source = f"encoder.checkpoint={save_spear_run(tmp_path / 'pretraining')}"
    options = (source, "dataset.min_seconds=0.1", "encoder.frozen_steps=0", "regime.num_steps=2")
    assert finetune(*options, config_file=f"recipes/asr/finetune/configs/{preset}.yaml") == (0, [])
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    assert "Optimizer Parameter Group 0: encoder.model." in log
    assert "Optimizer Parameter Group 1: projection.bias, projection.weight" in log


def test_new_weights_keep_the_architecture_and_another_start(tmp_path: Path, finetune: Call) -> None:
    source = save_spear_run(tmp_path / "pretraining")
    options = (f"encoder.checkpoint={source}", "encoder.frozen_steps=null", "regime.num_steps=2")
    assert finetune(*options, "encoder.new_weights=true") == (0, [])
    pretrained, weights = load_weights(source, 2), load_weights(tmp_path / "run", 2)
    key = "encoder_embed.out.weight"
    assert weights[f"encoder.model.{key}"].shape == pretrained[key].shape
    assert not torch.equal(weights[f"encoder.model.{key}"], pretrained[key])


def test_a_head_learns_above_log_mel_alone(tmp_path: Path, finetune: Call) -> None:
    assert finetune("encoder={family: log_mel}") == (0, [])
    weights = load_weights(tmp_path / "run", 4)
    assert weights.keys() == {"projection.weight", "projection.bias"}
    train = read_steps(tmp_path / "run" / "metrics" / "train.jsonl")
    assert train[4]["Loss"] < train[1]["Loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(optimizer: str, tmp_path: Path, finetune: Call) -> None:
    options = [f"encoder.checkpoint={save_spear_run(tmp_path / 'pretraining')}"]
    if optimizer == "scaled_adam":
        group = r"{params: '(module\.)?encoder\.', lr: 0.01}"
        options += ["optimizer.name=scaled_adam", f"optimizer.config={{lr: 0.045, groups: [{group}]}}"]
    assert finetune(*options) == (0, [])
    run = tmp_path / "run"
    expected, metrics = load_weights(run, 4), read_steps(run / "metrics" / "train.jsonl")
    # As if it had ended while the encoder was frozen.
    shutil.rmtree(run / "checkpoints" / "step_4")
    shutil.rmtree(run / "metrics")
    shutil.rmtree(tmp_path / "tokenizer")  # the run has its own
    assert finetune(*options) == (0, [])
    weights, repeated = load_weights(run, 4), read_steps(run / "metrics" / "train.jsonl")
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert sorted(repeated) == [3, 4]
    assert repeated[4]["Loss"] == metrics[4]["Loss"]


def test_rows_that_cannot_be_learnt_from_are_skipped_and_counted(tmp_path: Path, finetune: Call) -> None:
    rows = write_tones(tmp_path / "audio", list("abcd"), text=TEXT)
    rows[1] = replace(rows[1], text="")
    rows[2] = replace(rows[2], text="Zebra")
    rows += write_tones(tmp_path / "audio", ["short"], text=TEXT, seconds=0.3)
    rows += write_tones(tmp_path / "audio", ["long"], text=TEXT, seconds=3.0)
    corpus = write_corpus(tmp_path / "some.tsv", rows)
    source = f"encoder.checkpoint={save_spear_run(tmp_path / 'pretraining')}"
    assert finetune(source, "dataset.max_seconds=2", "regime.num_steps=2", train=corpus) == (0, [])
    log = (tmp_path / "run" / "logs" / "rank_0.log").read_text()
    for reason, name in (
        ("which have no text", "b"),
        ("with characters that the tokenizer does not know", "c"),
        ("too short for CTC to say their text", "short"),
        (r"longer than `max_seconds` (2)", "long"),
    ):
        assert f"Corpus some: skipping 1 of 6 rows, {reason}: '{name}'" in log

    code, lines = finetune(source, "dataset.max_seconds=2", "dataset.max_skipped=3", train=corpus, out="refused")
    assert code == 2
    assert len(lines) == 1
    assert "Corpus some: 4 of 6 rows cannot be used, more than `max_skipped` (3)" in lines[0]


def test_a_wrong_encoder_or_tokenizer_is_named_in_one_line(tmp_path: Path, finetune: Call) -> None:
    spear, spidr = save_spear_run(tmp_path / "spear"), save_spidr_run(tmp_path / "spidr")
    (weights,) = (spear / "checkpoints" / "step_2" / "model").rglob("*.pt")
    torch.save({"other": torch.zeros(1)}, weights)
    for options, pattern in (
        ((f"encoder.checkpoint={spidr}", "encoder.family=spear"), "must be a model of the family spear, but"),
        (
            (f"encoder.checkpoint={spidr}", f"tokenizer={tmp_path}"),
            "`tokenizer`: must be the name of a tokenizer's card",
        ),
        (("encoder.checkpoint=spear_nothing",), "`encoder.checkpoint`: must be the name of a card"),
        ((f"encoder.checkpoint={spear}",), f"{spear} cannot be loaded"),
        (("encoder={family: spear, arch: huge}",), "`encoder.arch` must be one of"),
        (("encoder={}",), "`checkpoint` must be the name of a card"),
        ((f"encoder.checkpoint={spidr}", "trainer.data_parallelism=fsdp"), "`trainer.data_parallelism` must be ddp"),
    ):
        code, lines = finetune(*options)
        assert code == 2, pattern
        assert len(lines) == 1
        assert pattern in lines[0]


def test_an_evaluation_names_what_it_cannot_use(tmp_path: Path, finetune: Call, call: Call) -> None:
    assert finetune("encoder={family: log_mel}", "regime.num_steps=2") == (0, [])
    rows = write_tones(tmp_path / "audio", list("ab"), text=TEXT)
    rows += write_tones(tmp_path / "audio", ["silent"]) + write_tones(
        tmp_path / "audio", ["tiny"], text="one", seconds=0.02
    )
    rows.append(replace(rows[0], id="gone", path=tmp_path / "gone.flac"))
    write_manifest(tmp_path / "test.tsv", rows)
    options = (f"checkpoint={tmp_path / 'run'}", f"corpus.manifest={tmp_path / 'test.tsv'}", "num_resamples=10")
    assert call(AsrEvaluateRecipe, "scores", "--config", *options) == (0, [])
    failed = dict(line.split("\t") for line in (tmp_path / "scores" / "failed.tsv").read_text().splitlines()[1:])
    assert failed.keys() == {"silent", "tiny", "gone"}
    assert failed["silent"] == "has no text"
    assert "too short" in failed["tiny"]

    for wrong, pattern in (
        (f"checkpoint={save_spear_run(tmp_path / 'spear')}", "must be a model of the family speech_ctc"),
        ("corpus.max_failures=2", "3 files cannot be used"),
        ("decoding.method=best", "`method` must be greedy or beam"),
    ):
        code, lines = call(AsrEvaluateRecipe, "scores", "--config", *options, wrong)
        assert code == 2, pattern
        assert pattern in " ".join(lines)


def test_a_tokenizer_of_another_size_than_the_models_is_refused(tmp_path: Path, finetune: Call, call: Call) -> None:
    assert finetune("encoder={family: log_mel}", "regime.num_steps=2") == (0, [])
    write_corpus(tmp_path / "other.tsv", write_tones(tmp_path / "audio", ["x"], text="qwertzuiop yxcvbnm"))
    assert call(TokenizerRecipe, "other", "--config", f"manifests=[{tmp_path / 'other.tsv'}]", "kind=char") == (0, [])
    options = (
        f"checkpoint={tmp_path / 'run'}",
        f"corpus.manifest={tmp_path / 'train.tsv'}",
        f"tokenizer={tmp_path / 'other'}",
    )
    code, lines = call(AsrEvaluateRecipe, "scores", "--config", *options)
    assert code == 2
    assert "must be the one that the model was trained with" in lines[0]
    code, lines = finetune("encoder={family: log_mel}", f"tokenizer={tmp_path / 'other'}")
    assert code == 2
    assert "must be the one that the run was begun with" in lines[0]

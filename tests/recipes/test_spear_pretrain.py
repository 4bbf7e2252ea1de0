from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fairseq2.device import CPU

from spear_plugin.models.spear import get_spear_model_hub
from tests.common import DATA_FOLDER
from tests.recipes.common import SMALL_MODEL, SMALL_ZIPFORMER, PretrainRunner, find_run_card, write_random_codes

SHORT_RUN = [
    SMALL_MODEL,
    "dataset.max_batch_seconds=15",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=2",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, SHORT_RUN, monkeypatch, capsys)


def test_a_run_with_overrides_trains_validates_and_its_checkpoint_loads_by_card_name(runner: PretrainRunner) -> None:
    assert runner("model.config_overrides.alpha=0.75", "optimizer.config.lr=0.01") == (0, [])
    train, valid = runner.read_steps("train"), runner.read_steps("valid")
    assert sorted(train) == [1, 2, 3, 4]
    assert sorted(valid) == [2, 4]
    for name in ("Loss", "Speech Loss", "Audio Loss", "Speech Masked Accuracy", "Audio Unmasked Accuracy"):
        assert all(torch.tensor(record[name]).isfinite() for record in (*train.values(), *valid.values()))
    assert valid[4]["Speech Loss"] < valid[2]["Speech Loss"]

    of_domains = sorted(valid[4][f"Speech on {domain} Loss"] for domain in ("Speech", "Audio"))
    assert of_domains[0] < valid[4]["Speech Loss"] < of_domains[1]
    assert "Audio on Audio Loss" not in valid[4]  # this stream has one domain only
    assert 0.0 < valid[4]["Speech Codebook Usage"] < 1.0
    assert 1.0 <= valid[4]["Speech Predicted Perplexity"] < valid[4]["Speech Target Perplexity"] <= 256.0

    model = get_spear_model_hub().load_model(find_run_card(runner.folder / "run", "checkpoint_step_4"), device=CPU)
    weights = runner.load_weights(4)
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(runner: PretrainRunner, tmp_path: Path) -> None:
    assert runner()[0] == 0
    expected = runner.load_weights(4)
    shutil.rmtree(tmp_path / "run")
    assert runner("regime.num_steps=2")[0] == 0
    assert runner()[0] == 0
    weights = runner.load_weights(4)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_gradient_accumulation_counts_the_frames_of_all_its_batches(runner: PretrainRunner, tmp_path: Path) -> None:
    assert runner("trainer.grad_accumulation.num_batches=2")[0] == 0
    accumulated = runner.read_steps()
    shutil.rmtree(tmp_path / "run")
    assert runner()[0] == 0
    single = runner.read_steps()
    assert accumulated[4]["Total Audio Seconds"] > 1.7 * single[4]["Total Audio Seconds"]


def test_a_model_at_25_hz_predicts_two_frames_of_speech_codes_at_a_time(runner: PretrainRunner) -> None:
    zipformer = f"{{{SMALL_ZIPFORMER}, output_downsampling_factor: 2}}"
    assert runner(f"model.config_overrides.zipformer={zipformer}") == (0, [])
    valid = runner.read_steps("valid")
    assert valid[4]["Speech Loss"] < valid[2]["Speech Loss"]
    assert runner.load_weights(4)["heads.speech.weight"].shape == (4, 256, 16)
    assert runner.load_weights(4)["heads.audio.weight"].shape == (2, 256, 16)


def test_bf16_follows_float32(runner: PretrainRunner, tmp_path: Path) -> None:
    assert runner()[0] == 0
    float32 = runner.read_steps()
    shutil.rmtree(tmp_path / "run")
    assert runner("trainer.mixed_precision.mode=auto", "trainer.mixed_precision.dtype=bfloat16")[0] == 0
    bfloat16 = runner.read_steps()
    assert float32[1]["Loss"] != bfloat16[1]["Loss"]
    for step in (1, 4):
        assert bfloat16[step]["Loss"] == pytest.approx(float32[step]["Loss"], rel=0.02)


def test_an_unreadable_file_is_skipped_and_counted(runner: PretrainRunner, tmp_path: Path) -> None:
    manifest = tmp_path / "speech.tsv"
    lines = (DATA_FOLDER / "speech.tsv").read_text().splitlines()
    path_column = lines[0].split("\t").index("path")
    rows = [line.split("\t") for line in lines[1:]]
    for row in rows:
        row[path_column] = str((DATA_FOLDER / row[path_column]).resolve())
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, and then nothing")
    rows[3][path_column] = str(bad)
    manifest.write_text("\n".join([lines[0], *("\t".join(row) for row in rows)]) + "\n")
    codes = write_random_codes(tmp_path / "codes_of_bad", manifest, frame_rate_hz=50.0)
    corpora = f"[{{name: speech, manifest: {manifest}, codes: {{speech: {codes}}}}}]"
    code, lines = runner("regime.num_steps=12", "regime.validate_every_n_steps=12", corpora=corpora)
    assert (code, lines) == (0, [])
    skipped = runner.read_steps()[12]["Total Number of Skipped Recordings"]
    assert skipped >= 1
    log = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("rank_0*"))
    assert "bad.wav" in log


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("regime.num_stepz=3", "num_stepz"),
        ("model.config_overrides.alpah=3", "alpah"),
        ("model.config_overrides.alpha=1.5", r"`alpha` must be in \[0, 1\], but is 1.5"),
        ("dataset.max_batch_seconds=many", "max_batch_seconds|many"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(runner: PretrainRunner, option: str, pattern: str) -> None:
    code, lines = runner(option)
    assert code == 2
    assert len(lines) == 1
    assert __import__("re").search(pattern, lines[0])


def test_a_missing_corpus_is_named_in_one_line(runner: PretrainRunner) -> None:
    corpora = runner.corpora.replace("tests/data/audio.tsv", "tests/data/nowhere.tsv")
    code, lines = runner(corpora=corpora)
    assert (code, len(lines)) == (2, 1)
    assert "nowhere.tsv" in lines[0]


def test_codes_of_two_quantizers_in_one_stream_are_refused_in_one_line(runner: PretrainRunner) -> None:
    shutil.rmtree(runner.folder / "codes" / "audio_speech")
    write_random_codes(
        runner.folder / "codes" / "audio_speech", DATA_FOLDER / "audio.tsv", frame_rate_hz=50.0, quantizer="f" * 16
    )
    code, lines = runner()
    assert (code, len(lines)) == (2, 1)
    assert "same teacher and quantizer" in lines[0]


def test_going_on_with_codes_of_another_quantizer_is_refused_in_one_line(runner: PretrainRunner) -> None:
    assert runner()[0] == 0
    shutil.rmtree(runner.folder / "codes" / "audio_audio")
    write_random_codes(
        runner.folder / "codes" / "audio_audio", DATA_FOLDER / "audio.tsv", frame_rate_hz=25.0, quantizer="f" * 16
    )
    code, lines = runner("regime.num_steps=6")
    assert (code, len(lines)) == (2, 1)
    assert "targets.json" in lines[0]
    assert "stream 'audio'" in lines[0]


def test_a_store_that_does_not_fit_the_models_streams_is_refused_in_one_line(runner: PretrainRunner) -> None:
    code, lines = runner("model.config_overrides.target_streams=[{name: speech, num_codebooks: 16}]")
    assert (code, len(lines)) == (2, 1)
    assert "2 codebooks" in lines[0]
    assert "16" in lines[0]


def test_a_stream_may_have_a_large_codebook_if_the_store_has_the_same(runner: PretrainRunner, tmp_path: Path) -> None:
    manifest = DATA_FOLDER / "speech.tsv"
    codes = write_random_codes(tmp_path / "large", manifest, frame_rate_hz=50.0, num_codebooks=1, codebook_size=1000)
    corpora = f"[{{name: speech, manifest: {manifest}, codes: {{speech: {codes}}}}}]"

    def train(codebook_size: int) -> tuple[int, list[str]]:
        stream = f"{{name: speech, num_codebooks: 1, codebook_size: {codebook_size}, weights: {{speech: 1.0}}}}"
        streams = f"model.config_overrides.target_streams=[{stream}]"
        return runner(streams, corpora=corpora, run=f"run_{codebook_size}")

    assert train(1000) == (0, [])
    assert runner.load_weights(4, run="run_1000")["heads.speech.weight"].shape == (1, 1000, 16)
    code, (line,) = train(256)
    assert code == 2
    assert "has 1 codebooks of 1000 entries at 50.0 Hz, but stream speech of the model has 1 codebooks of 256" in line


def test_a_flipped_byte_in_a_code_store_is_named_in_one_line(runner: PretrainRunner) -> None:
    shard = next((runner.folder / "codes" / "speech_speech").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, lines = runner()
    assert (code, len(lines)) == (2, 1)
    assert shard.name in lines[0]

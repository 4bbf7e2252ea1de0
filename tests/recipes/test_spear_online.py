"""Pre-training whose teachers run beside the student, against the same with code stores."""

# transformers is annotated in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fairseq2.device import CPU
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.spear.pretrain.online import OnlineTargets, _OnlineStream
from recipes.targets import TargetSource
from spear_plugin.data.audio import read_audio
from spear_plugin.data.batch import CODE_PADDING, SpearExample, StreamShape, create_spear_batch
from spear_plugin.data.codes import CodeStore
from spear_plugin.data.manifest import Domain, read_manifest
from spear_plugin.models.spear import TargetStreamConfig
from spear_plugin.quantizers import (
    FrameQuantizer,
    MvqQuantizerConfig,
    create_mvq_quantizer,
    load_quantizer,
    save_quantizer_asset,
)
from spear_plugin.teachers import Teacher, TeacherConfig, load_teacher
from tests.common import DATA_FOLDER, assert_equal
from tests.recipes.common import REGULARIZED_MODEL, PretrainRunner, call_recipe, write_random_codes

SPEECH, AUDIO = DATA_FOLDER / "speech.tsv", DATA_FOLDER / "audio.tsv"
OPTIONS = [
    REGULARIZED_MODEL,
    "dataset.max_batch_seconds=15",
    "regime.num_steps=4",
    "regime.validate_every_n_steps=4",
    "regime.checkpoint_every_n_steps=2",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


def _save_teacher(folder: Path) -> TeacherConfig:
    """Write a small random wav2vec 2.0, whose layer drop draws random numbers also in evaluation mode."""
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=16, feat_extract_norm="layer",
        do_stable_layer_norm=True, layerdrop=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return TeacherConfig(name="huggingface", path=str(folder))


def _save_quantizer(folder: Path, teacher: Teacher, *, num_codebooks: int = 2) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = MvqQuantizerConfig(
            dim=teacher.dim, num_codebooks=num_codebooks, normalize=False, teacher=teacher.name,
            frame_rate_hz=teacher.frame_rate_hz,
        )  # fmt: skip
        save_quantizer_asset(folder, create_mvq_quantizer(config), config, folder.name)
    return folder


class _Targets:
    """A teacher, its quantizer, stores of their codes, and random codes of the other stream."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.teacher_config = _save_teacher(folder / "teacher")
        self.teacher = load_teacher(self.teacher_config, device=CPU)
        self.quantizer_path = _save_quantizer(folder / "quantizer", self.teacher)
        self.quantizer: FrameQuantizer = load_quantizer(self.quantizer_path)
        audio = write_random_codes(folder / "audio_audio", AUDIO, frame_rate_hz=25.0)
        self.stores = {manifest.stem: folder / f"store_{manifest.stem}" for manifest in (SPEECH, AUDIO)}
        for manifest in (SPEECH, AUDIO):
            settings = [*self._settings("."), f"corpus.manifest={manifest}"]
            arguments = [str(self.stores[manifest.stem]), "--config", *settings]
            assert call_recipe(MvqEncodeRecipe(), arguments, monkeypatch, capsys) == (0, [])
        self.corpora = (
            f"[{{name: speech, manifest: {SPEECH}, codes: {{speech: {self.stores['speech']}}}}}, "
            f"{{name: audio, manifest: {AUDIO}, codes: {{speech: {self.stores['audio']}, audio: {audio}}}}}]"
        )
        self.corpora_without = (
            f"[{{name: speech, manifest: {SPEECH}}}, {{name: audio, manifest: {AUDIO}, codes: {{audio: {audio}}}}}]"
        )

    def _settings(self, section: str) -> list[str]:
        prefix = "" if section == "." else f"{section}."
        values = {
            "teacher.name": "huggingface", "teacher.path": self.teacher_config.path,
            "quantizer.path": self.quantizer_path,
        }  # fmt: skip
        return [f"{prefix}{key}={value}" for key, value in values.items()]

    @property
    def online(self) -> list[str]:
        return self._settings("online_targets.speech")


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> _Targets:
    return _Targets(tmp_path / "targets", monkeypatch, capsys)


@pytest.fixture
def runner(
    targets: _Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> PretrainRunner:
    return PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys, corpora=targets.corpora)


def test_losses_are_those_of_stored_codes_and_a_stopped_run_goes_on_to_the_same_weights(
    runner: PretrainRunner, targets: _Targets
) -> None:
    assert runner(run="stored") == (0, [])
    assert runner(*targets.online, run="online", corpora=targets.corpora_without) == (0, [])
    for split in ("train", "valid"):
        stored, online = (runner.read_steps(split, run=run) for run in ("stored", "online"))
        assert stored.keys() == online.keys() != set()
        for step, record in stored.items():
            for name in ("Loss", "Speech Loss", "Audio Loss", "Speech Target Perplexity"):
                assert online[step][name] == pytest.approx(record[name], rel=1e-5), (split, step, name)

    records = [json.loads((runner.folder / run / "targets.json").read_text()) for run in ("stored", "online")]
    for record in records:
        del record["speech"]["manifest"]
    assert records[0] == records[1]

    assert runner(*targets.online, "regime.num_steps=2", run="parts", corpora=targets.corpora_without)[0] == 0
    assert runner(*targets.online, run="parts", corpora=targets.corpora_without) == (0, [])
    expected, weights = (runner.load_weights(4, run=run) for run in ("online", "parts"))
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        assert_equal(weights[name], value)


def _read_examples() -> list[SpearExample]:
    """Return examples of both domains and several lengths, as a reader gives them."""
    rows = [*read_manifest(SPEECH)[:3], *read_manifest(AUDIO)[:2]]
    domains: list[Domain] = ["speech", "speech", "speech", "audio", "audio"]
    return [
        SpearExample(id=row.id, domain=domain, start=0.0, waveform=read_audio(row.path, sample_rate=16_000), codes={})
        for row, domain in zip(rows, domains, strict=True)
    ]


@pytest.mark.parametrize("domains", [("speech",), ("speech", "audio"), ("audio",)])
def test_codes_are_those_of_the_store_and_only_of_examples_that_have_the_stream(
    targets: _Targets, domains: tuple[Domain, ...]
) -> None:
    examples = _read_examples()
    num_frames = max(example.waveform.size for example in examples) // 320
    batch = create_spear_batch(
        examples, {"speech": StreamShape(num_frames=num_frames, num_codebooks=2),
                   "other": StreamShape(num_frames=7, num_codebooks=1)}
    )  # fmt: skip
    stream = TargetStreamConfig(name="speech", num_codebooks=2, weights=dict.fromkeys(domains, 1.0))
    online = OnlineTargets({"speech": _OnlineStream(TargetSource(targets.teacher, targets.quantizer), stream)})
    codes = online(batch)
    stores = {name: CodeStore(folder) for name, folder in targets.stores.items()}
    assert codes["other"] is batch.codes["other"]
    assert codes["speech"].shape == (5, num_frames, 2)
    assert codes["speech"].dtype == torch.int16
    for example, found in zip(examples, codes["speech"], strict=True):
        stored = torch.from_numpy(stores[example.domain][example.id].astype("int16"))
        num_stored = len(stored) if example.domain in domains else 0
        assert_equal(found[:num_stored], stored[:num_stored])
        assert (found[num_stored:] == CODE_PADDING).all()


def test_an_utterance_with_undefined_frames_has_no_codes(targets: _Targets) -> None:
    examples = _read_examples()[:2]
    batch = create_spear_batch(examples, {"speech": StreamShape(num_frames=400, num_codebooks=2)})
    batch.waveforms[1, 1000] = torch.nan
    stream = TargetStreamConfig(name="speech", num_codebooks=2)
    online = OnlineTargets({"speech": _OnlineStream(TargetSource(targets.teacher, targets.quantizer), stream)})
    codes = online(batch)["speech"]
    assert (codes[0, :10] >= 0).all()
    assert (codes[1] == CODE_PADDING).all()


def test_the_random_numbers_of_the_student_stay_what_they_are(targets: _Targets) -> None:
    batch = create_spear_batch(_read_examples()[:2], {"speech": StreamShape(num_frames=400, num_codebooks=2)})
    stream = TargetStreamConfig(name="speech", num_codebooks=2)
    online = OnlineTargets({"speech": _OnlineStream(TargetSource(targets.teacher, targets.quantizer), stream)})
    state = torch.get_rng_state()
    online(batch)
    assert_equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("online_targets.speech.teacher.layer=1",), r"must be of teacher .*:1 (width 32), but is of "),
        (("online_targets.speech.quantizer.path=null",), "`path` must be set to the folder or the card's name"),
        (("online_targets.phones.quantizer.path=a",), "must name target streams of the model (speech, audio), but"),
        (("model.config_overrides.target_streams=[{name: speech, num_codebooks: 4}]",),
         "`online_targets.speech` gives 2 codebooks of 256 entries at 50.0 Hz, but stream speech of the model has 4"),
        (("dataset.mixing.speech_probability=0.5", "dataset.mixing.noise_probability=0.0"),
         "`online_targets` cannot be used with `dataset.mixing`"),
        (("online_targets.speech.teacher.name=nobody",), "`teacher.name` must be one of"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named_in_one_line(
    runner: PretrainRunner, targets: _Targets, changes: tuple[str, ...], message: str
) -> None:
    code, lines = runner(*targets.online, *changes, corpora=targets.corpora_without)
    assert (code, len(lines)) == (2, 1)
    found = lines[0].replace(str(runner.folder), "")
    for part in message.split(".*"):
        assert part in found


def test_going_on_with_another_quantizer_is_refused_in_one_line(runner: PretrainRunner, targets: _Targets) -> None:
    assert runner("regime.num_steps=2") == (0, [])
    # From stored codes to those of the same teacher and quantizer, a run may go on.
    assert runner(*targets.online, corpora=targets.corpora_without) == (0, [])
    shutil.rmtree(targets.quantizer_path)
    config = MvqQuantizerConfig(
        dim=32, num_codebooks=2, normalize=False, teacher=targets.teacher.name, frame_rate_hz=50.0
    )
    save_quantizer_asset(targets.quantizer_path, create_mvq_quantizer(config), config, "another")
    code, lines = runner(*targets.online, "regime.num_steps=6", corpora=targets.corpora_without)
    assert (code, len(lines)) == (2, 1)
    assert "codes of stream 'speech' that differ" in lines[0]

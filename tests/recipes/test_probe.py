from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.recipe.run import run
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from torch import Tensor

import recipes.probe.recipe as probe_recipe
from recipes.feature_sources import SPEAR_TIMING, FeatureSource, FrameTiming, LogMelSource, SpearSource
from recipes.features import open_source
from recipes.probe.config import ProbeConfig, ProbeSection, SourceSection, complete_sources
from recipes.probe.extraction import extract_features
from recipes.probe.recipe import ProbeRecipe
from recipes.probe.results import ProbeResult, ResultStore
from recipes.probe.tasks import ProbeTask, frame_labels, read_task
from spear_plugin.data.audio import AudioError
from spear_plugin.evaluation import ProbeError
from spear_plugin.models.spear import create_spear_model, get_spear_model_hub
from tests.common import assert_close, assert_equal
from tests.recipes.common import call_recipe, save_run, save_spidr_run
from tests.unit.models.spear.test_released import narrow_config

RATE = 16_000

TONES = {"AA": 300.0, "IY": 900.0, "UW": 2500.0}
"""Phones of the test corpus and their frequencies in Hz."""

COLUMNS = [
    "id",
    "utterance",
    "path",
    "num_samples",
    "sample_rate",
    "domain",
    "label",
    "split",
    "fold",
    "start",
    "end",
    "text",
    "speaker",
    "language",
]


def write_table(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", delimiter="\t", quoting=csv.QUOTE_NONE)

        writer.writeheader()

        writer.writerows(rows)


def write_tone(path: Path, frequencies: list[float], seed: int, *, seconds: float = 0.15) -> int:
    """Write tones in noise, one after the other, and return the number of samples."""
    time = np.arange(int(RATE * seconds)) / RATE

    waveform = np.concatenate([0.3 * np.sin(2 * np.pi * f * time) for f in frequencies])

    waveform += 0.02 * np.random.default_rng(seed).standard_normal(waveform.size)

    soundfile.write(path, waveform, RATE)

    return waveform.size


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tasks ``phones`` (frames of tones) and ``events`` (whole files, three folds)."""
    folder = tmp_path_factory.mktemp("corpus")

    generator = np.random.default_rng(0)

    phones, alignment, events = [], [], []

    for number in range(15):
        names = ["SIL", *generator.permutation(list(TONES)).tolist(), *generator.permutation(list(TONES)).tolist()]

        num_samples = write_tone(folder / f"u{number}.wav", [TONES.get(name, 0.0) for name in names], number)

        whole = {"id": f"u{number}", "utterance": f"u{number}", "path": f"u{number}.wav", "num_samples": num_samples}

        whole |= {"sample_rate": RATE, "domain": "speech", "start": 0.0, "end": num_samples / RATE}

        phones.append(whole | {"split": ("train", "train", "train", "valid", "test")[number % 5]})

        alignment += [
            {"id": f"u{number}", "start": f"{0.15 * i:.2f}", "end": f"{0.15 * (i + 1):.2f}", "phone": name, "word": ""}
            for i, name in enumerate(names)
        ]

    for number in range(18):
        label = list(TONES)[number % 3]

        num_samples = write_tone(folder / f"e{number}.wav", [TONES[label]] * 2, 100 + number)

        row = {"id": f"e{number}", "utterance": f"e{number}", "path": f"e{number}.wav", "num_samples": num_samples}

        row |= {"sample_rate": RATE, "domain": "audio", "label": label, "split": "train", "fold": number // 3 % 3}

        events.append(row | {"start": 0.0, "end": num_samples / RATE})

    write_table(folder / "phones.tsv", COLUMNS, phones)

    write_table(folder / "phones.alignment.tsv", ["id", "start", "end", "phone", "word"], alignment)

    write_table(folder / "events.tsv", COLUMNS, events)

    return folder


def make_config(corpus: Path, **settings: Any) -> ProbeConfig:
    config = ProbeConfig(tasks=[corpus / "phones.tsv", corpus / "events.tsv"], **settings)

    config.probe.l2_grid = [1e-2]

    config.probe.max_iterations = 20

    config.common.torch.num_threads = 1

    return config


def run_probe(config: ProbeConfig, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    run(ProbeRecipe(), config, folder, no_rich=True)

    report = json.loads((folder / "probe.json").read_text())

    return {(result["task"], result["source"]): result for result in report["results"]}


class CountingSource(FeatureSource):
    """The number of a frame as its only feature, in two layers of opposite sign; 10 Hz, frame 0 centred at 52 ms."""

    identity = "counting"
    sample_rate = RATE
    timing = FrameTiming(10.0, first_centre=0.052)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // 1600

    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        numbers = torch.arange(waveforms.size(1) // 1600).float().expand(waveforms.size(0), -1).unsqueeze(-1)

        return [numbers, -numbers], lengths // 1600


def extract(source: FeatureSource, task: ProbeTask, *, time_shifts: list[float]) -> Tensor:
    features = extract_features(
        source,
        [task],
        time_shifts=time_shifts,
        max_batch_seconds=2.0,
        device=torch.device("cpu"),
        report=lambda num_files: None,
    )

    return features[0]


def test_frame_labels_names_the_segment_that_holds_the_centre_of_each_frame() -> None:
    # Centres at 10, 30, 50, 70, 90, 110 ms; a segment holds its start but not its end.
    segments = [(0.0, 0.03, "SIL"), (0.03, 0.07, "AA"), (0.07, 0.08, "T"), (0.08, 0.09, "K"), (0.09, 0.11, "IY")]

    assert frame_labels(segments) == [(0.01, "SIL"), (0.03, "AA"), (0.05, "AA"), (0.07, "T"), (0.09, "IY")]


def test_nearest_frames_rounds_to_the_centre_and_stays_inside() -> None:
    timing = FrameTiming(50.0, first_centre=0.045)

    times = torch.tensor([0.0, 0.045, 0.054, 0.056, 0.065, 9.0])

    assert timing.nearest_frames(times, 4).tolist() == [0, 0, 0, 1, 1, 3]


def test_spear_timing_is_the_centre_of_the_front_ends_receptive_field() -> None:
    model = get_spear_model_hub().create_new_model(get_spear_model_hub().get_arch_config("tiny")).eval()

    fbank = torch.randn(1, 80, 128, requires_grad=True)

    output = model.encoder_embed(fbank, None)[0]  # (1, 36, D)

    frame = 15

    output[0, frame].sum().backward()

    assert fbank.grad is not None

    seen = fbank.grad[0].abs().sum(dim=-1).nonzero().flatten()

    centre = 0.010 * ((seen[0] + seen[-1]).item() / 2 + 0.5)

    assert SPEAR_TIMING.first_centre + frame / SPEAR_TIMING.rate_hz == pytest.approx(centre)


def test_log_mel_source_puts_a_click_into_the_nearest_frame() -> None:
    source = LogMelSource()

    for time in (0.050, 0.210, 0.333):
        waveform = torch.zeros(1, 8000)

        waveform[0, round(time * RATE)] = 1.0

        layers, lengths = source.extract(waveform, torch.tensor([8000]))

        assert layers[0].shape == (1, 25, 256)

        assert lengths.tolist() == [25]

        loudest = layers[0][0].mean(dim=-1).argmax().item()

        assert loudest == source.timing.nearest_frames(torch.tensor([time]), 25).item()


@pytest.mark.parametrize("factor", [1, 2])
def test_spear_source_gives_layers_at_50_hz_and_the_output_at_its_own_rate(factor: int) -> None:
    torch.manual_seed(0)

    model = create_spear_model(narrow_config(output_downsampling_factor=factor))

    waveforms, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 8000])

    layers, output = SpearSource(model), SpearSource(model, output_only=True)

    expected = model.eval().extract_features(waveforms, lengths)

    x, num_frames = layers.extract(waveforms, lengths)

    assert num_frames.tolist() == [46, 21]

    assert [tuple(y.shape) for y in x] == [(2, 46, 32)] * 3

    assert (layers.timing, list(layers.layer_dims)) == (SPEAR_TIMING, [32, 32, 32])

    (last,), num_frames = output.extract(waveforms, lengths)

    assert_equal(last, expected.last)

    assert_equal(num_frames, expected.lengths)

    assert output.timing.rate_hz == 50.0 / factor

    assert output.timing.first_centre == pytest.approx(0.045 if factor == 1 else 0.055)


def test_extract_features_takes_the_nearest_frame_after_each_time_shift(corpus: Path) -> None:
    task = read_task(corpus / "phones.tsv", ProbeSection(), seed=0)

    features = extract(CountingSource(), task, time_shifts=[0.0, 0.1])  # (A, L, N, D)

    assert features.shape == (2, 2, task.labels.numel(), 1)

    nearest = ((task.start - 0.052) * 10).round()

    assert_close(features[0, 0, :, 0].double(), nearest.clamp(0, 9))  # 1.05 s are ten frames

    assert_close(features[1, 0, :, 0].double(), (nearest + 1).clamp(0, 9))

    assert_equal(features[:, 1], -features[:, 0])


def test_extract_features_pools_the_frames_inside_of_a_segment(corpus: Path, tmp_path: Path) -> None:
    row = {"path": str(corpus / "u0.wav"), "num_samples": 16800, "sample_rate": RATE, "domain": "speech"}

    rows = [
        row | {"id": f"w{i}", "utterance": f"u{i % 2}", "label": "a", "split": part, "start": start, "end": end}
        for i, (part, start, end) in enumerate([("train", 0.21, 0.69), ("valid", 0.0, 1.05), ("test", 0.31, 0.33)])
    ]

    write_table(tmp_path / "words.tsv", COLUMNS, rows)

    features = extract(CountingSource(), read_task(tmp_path / "words.tsv", ProbeSection(), seed=0), time_shifts=[0.0])

    # Frames 2 to 6 (centres 0.252 to 0.652), 0 to 9, and 3 alone (no centre inside: the nearest one).
    assert_close(features[0, 0], torch.tensor([[4.0, 2**0.5], [4.5, 8.25**0.5], [3.0, 0.0]]))


def test_extract_features_pads_files_that_are_too_short_for_a_frame(tmp_path: Path) -> None:
    rows = []

    for number, part in enumerate(["train", "valid", "test"]):
        num_samples = write_tone(tmp_path / f"s{number}.wav", [500.0], number, seconds=0.005)

        row = {"id": f"s{number}", "utterance": f"s{number}", "path": f"s{number}.wav", "num_samples": num_samples}

        rows.append(row | {"sample_rate": RATE, "label": "a", "split": part, "start": 0.0, "end": num_samples / RATE})

    write_table(tmp_path / "clicks.tsv", COLUMNS, rows)

    task = read_task(tmp_path / "clicks.tsv", ProbeSection(), seed=0)

    assert extract(LogMelSource(), task, time_shifts=[0.0]).shape == (1, 1, 3, 512)


def test_read_task_excludes_silence_and_draws_items_by_the_seed(corpus: Path) -> None:
    section = ProbeSection(max_train_items=50, max_test_items=20)

    task = read_task(corpus / "phones.tsv", section, seed=0)

    assert task.classes == sorted(TONES)

    (split,) = task.splits

    assert (split.tuning[0][0].numel(), split.test.numel()) == (50, 20)

    assert read_task(corpus / "phones.tsv", section, seed=0).digest == task.digest

    assert read_task(corpus / "phones.tsv", section, seed=1).digest != task.digest


def test_read_task_reads_the_same_share_of_files_for_tasks_on_the_same_corpus(corpus: Path) -> None:
    limited = read_task(corpus / "phones.tsv", ProbeSection(max_task_minutes=0.15), seed=3)

    more = read_task(corpus / "phones.tsv", ProbeSection(max_task_minutes=0.2), seed=3)

    assert 1 < len(limited.clips) <= len(more.clips) < 15

    assert {clip.id for clip in limited.clips} <= {clip.id for clip in more.clips}


def test_read_task_uses_folds_when_the_file_has_them(corpus: Path) -> None:
    task = read_task(corpus / "events.tsv", ProbeSection(), seed=0)

    assert len(task.splits) == 3

    assert task.test.sort().values.tolist() == list(range(18))


@pytest.mark.parametrize(
    ("splits", "labels", "message"),
    [
        (["train", "train", "valid"], "aaa", r"the test split has no items"),
        (["train", "valid", "test"], "aab", r"label\(s\) b occur in the test split but not in training"),
        (["train", "valid", "dev"], "aaa", r"`split` must be one of train, valid, test, but is 'dev'"),
    ],
)
def test_read_task_raises_error_when_parts_do_not_fit(
    tmp_path: Path, splits: list[str], labels: str, message: str
) -> None:
    row = {"path": "x.wav", "num_samples": 1600, "sample_rate": RATE, "start": 0, "end": 0.1}

    rows = [
        row | {"id": f"x{i}", "utterance": f"x{i}", "split": split, "label": label}
        for i, (split, label) in enumerate(zip(splits, labels, strict=True))
    ]

    write_table(tmp_path / "task.tsv", COLUMNS, rows)

    with pytest.raises(ProbeError, match=message):
        read_task(tmp_path / "task.tsv", ProbeSection(), seed=0)


def test_read_task_raises_error_when_the_file_is_missing_or_lacks_a_column(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"nowhere\.tsv: the task file cannot be read: No such file"):
        read_task(tmp_path / "nowhere.tsv", ProbeSection(), seed=0)

    (tmp_path / "bad.tsv").write_text("id\tpath\n")

    with pytest.raises(ProbeError, match=r"must have the column\(s\) end, label, num_samples"):
        read_task(tmp_path / "bad.tsv", ProbeSection(), seed=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SourceSection(name="a", kind="mfcc"), r"`kind` must be one of model, .*, but is 'mfcc'"),
        (SourceSection(name="a", kind="model"), r"`checkpoint` must be the name of a card or the folder of a run"),
        (SourceSection(name="a/b", kind="log_mel"), r"`name` must be a word .*, but is 'a/b'"),
        (
            SourceSection(name="a", kind="log_mel", layers="all"),
            r"`layers` must be one of best, weighted, but is 'all'",
        ),
    ],
)
def test_config_is_not_valid_when_a_source_is_wrong(source: SourceSection, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StandardObjectValidator().validate(ProbeConfig(features=[source], tasks=[Path("t.tsv")]))


def test_complete_sources_adds_the_untrained_architecture_and_log_mel_once() -> None:
    sections = [SourceSection(name="a", checkpoint="run_a"), SourceSection(name="b", checkpoint="run_b")]

    completed = [(section.name, section.kind, section.checkpoint) for section in complete_sources(sections)[2:]]

    assert completed == [
        ("a_untrained", "untrained", "run_a"),
        ("log_mel", "log_mel", None),
        ("b_untrained", "untrained", "run_b"),
    ]


def test_open_source_loads_the_last_step_and_seeds_the_untrained_model(tmp_path: Path) -> None:
    folder = save_run(tmp_path, seed=5)

    def identify(kind: str, seed: int) -> str:
        section = SourceSection(name="a", kind=kind, checkpoint=str(folder))

        return open_source(section, device=torch.device("cpu"), seed=seed).identity

    assert identify("model", 5) == identify("untrained", 5)  # the run's weights are those of a model seeded with 5

    assert identify("untrained", 5) != identify("untrained", 6)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("no_such_card", r"features 'a', `checkpoint`: .* but 'no_such_card' is neither"),
        ("wav2vec2_base", r"must be a model of the family spear or spidr, but 'wav2vec2_base' is of 'wav2vec2'"),
        ("{empty}", r"holds no finished checkpoint"),
    ],
)
def test_open_source_raises_error_when_the_checkpoint_is_no_model_of_ours(
    tmp_path: Path, checkpoint: str, message: str
) -> None:
    section = SourceSection(name="a", checkpoint=checkpoint.format(empty=tmp_path))

    with pytest.raises(RecipeError, match=message):
        open_source(section, device=torch.device("cpu"), seed=0)


def test_recipe_probes_a_model_next_to_its_untrained_self_and_log_mel(corpus: Path, tmp_path: Path) -> None:
    run_folder = save_run(tmp_path / "run", seed=1)

    config = make_config(corpus, features=[SourceSection(name="spear", checkpoint=str(run_folder))])

    results = run_probe(config, tmp_path / "out")

    sources = ("spear", "spear_untrained", "log_mel")

    assert set(results) == {(task, source) for task in ("phones", "events") for source in sources}

    for (task, _), result in results.items():
        assert result["low"] <= result["accuracy"] <= result["high"]

        assert result["accuracy"] > result["majority"] + 0.2, task

    num_layers = len(results["phones", "spear"]["layers"])

    assert num_layers > 1

    assert 1 <= results["phones", "spear"]["layer"] <= num_layers

    assert results["events", "log_mel"]["num_test"] == 18

    report = json.loads((tmp_path / "out" / "probe.json").read_text())

    pairs = [(d["task"], d["source"], d["reference"]) for d in report["differences"]]

    assert ("phones", "spear", "spear_untrained") in pairs

    assert ("events", "spear", "log_mel") in pairs

    assert len((tmp_path / "out" / "probe.tsv").read_text().splitlines()) == 7

    assert (tmp_path / "out" / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_recipe_keeps_finished_results_and_repeats_those_that_changed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted: list[list[str]] = []

    def count(source: FeatureSource, tasks: list[ProbeTask], **options: Any) -> list[Tensor]:
        extracted.append([task.name for task in tasks])

        return extract_features(source, tasks, **options)

    monkeypatch.setattr(probe_recipe, "extract_features", count)

    config = make_config(corpus, features=[SourceSection(name="mel", kind="log_mel")])

    first = run_probe(config, tmp_path)

    assert extracted == [["phones", "events"]]

    (tmp_path / "results" / "events.mel.json").write_text("{")  # as if never finished

    assert run_probe(config, tmp_path)["phones", "mel"] == first["phones", "mel"]

    assert extracted[1:] == [["events"]]

    config.probe.max_train_items = 60

    run_probe(config, tmp_path)

    assert extracted[2:] == [["phones", "events"]]


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_recipe_learns_a_weighted_sum_of_layers(corpus: Path, tmp_path: Path, family: str) -> None:
    run_folder = save_run(tmp_path / "run", seed=1) if family == "spear" else save_spidr_run(tmp_path / "run")

    source = SourceSection(name="sum", kind="untrained", checkpoint=str(run_folder), layers="weighted")

    result = run_probe(make_config(corpus, features=[source]), tmp_path / "out")["events", "sum"]

    assert result["layer"] == 0

    assert len(result["layer_weights"]) > 1

    assert sum(result["layer_weights"]) == pytest.approx(1.0, abs=1e-5)


def test_recipe_fails_with_one_line_when_an_audio_file_is_missing(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"

    folder.mkdir()

    for path in corpus.iterdir():
        if path.name != "e7.wav":
            (folder / path.name).symlink_to(path)

    config = make_config(folder, features=[SourceSection(name="mel", kind="log_mel")])

    with pytest.raises(AudioError, match=r"e7\.wav: there is no such file") as error:
        run(ProbeRecipe(), config, tmp_path / "out", no_rich=True)

    assert error.value.__cause__ is None  # the command line then prints the message without a stack trace

    assert os.linesep not in str(error.value)


def test_result_store_ignores_results_of_another_identity(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)

    settings: dict[str, Any] = dict.fromkeys(ProbeResult.__dataclass_fields__, 0)

    result = ProbeResult(**settings | {"identity": "a", "task": "t", "source": "s", "layers": []})

    store.save(result)

    assert store.find("t", "s", "a") == result

    assert store.find("t", "s", "b") is None

    assert store.find("t", "other", "a") is None


def test_recipe_publishes_accuracies_to_the_run_at_the_step_of_its_checkpoint(corpus: Path, tmp_path: Path) -> None:
    run_folder = save_run(tmp_path / "run", seed=1)

    step_folder = run_folder / "checkpoints" / "step_2"

    step_folder.with_name("step_10").mkdir()  # later, but not what is asked for

    config = make_config(
        corpus, features=[SourceSection(name="mine", checkpoint=str(step_folder))], publish="probe", baselines=False
    )

    results = run_probe(config, tmp_path / "out")

    assert set(results) == {("phones", "mine"), ("events", "mine")}

    (line,) = (run_folder / "metrics" / "probe.jsonl").read_text().splitlines()

    record = json.loads(line)

    assert record.pop("Time")

    assert record == {"Step": 2} | {f"{task}/{name}": result["accuracy"] for (task, name), result in results.items()}

    assert len(list((run_folder / "tb" / "probe").glob("events.*"))) == 1


def test_recipe_publishes_only_what_is_a_checkpoint_of_a_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = save_run(tmp_path / "run", seed=1) / "checkpoints"

    released.rename(tmp_path / "moved")

    arguments = [
        *(str(tmp_path / "out"), "--config", f"tasks=[{corpus / 'events.tsv'}]", "publish=probe"),
        f"features=[{{name: mine, checkpoint: {tmp_path / 'moved'}}}]",
    ]

    code, lines = call_recipe(ProbeRecipe(), arguments, monkeypatch, capsys)

    assert (code, len(lines)) == (2, 1)

    assert "features 'mine', `checkpoint`: must be a checkpoint of a run when `publish` is set, but" in lines[0]

    code, lines = call_recipe(ProbeRecipe(), [*arguments, "publish=valid/mine"], monkeypatch, capsys)

    assert (code, len(lines)) == (2, 1)

    assert "`publish` must be a word of letters, digits, - and _" in lines[0]

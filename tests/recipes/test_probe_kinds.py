"""Each kind of probe on tones that log-mel energies tell apart, and what its files must have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from recipes.feature_sources import LogMelSource
from recipes.probe.config import HeadSection, ProbeConfig, ProbeSection, SourceSection
from recipes.probe.tasks import Fit, ProbeTask
from spear_plugin.evaluation import AveragePrecisionStatistic, ProbeError, RatioStatistic
from tests.recipes.probe_corpora import COLUMNS, RATE, TONES, extract, read_task, run_probe, write_table, write_tone

PARTS = ("train", "train", "train", "valid", "test")


def section(**settings: object) -> ProbeSection:
    head = HeadSection(learning_rates=[1e-2], max_epochs=25, patience=25, hidden_dim=32)
    return ProbeSection(head=head, num_resamples=20, **settings)  # type: ignore[arg-type]


def fit(task: ProbeTask) -> Fit:
    return task.fit(extract(LogMelSource(), task), "weighted", report=lambda: None)


def measure(task: ProbeTask) -> float:
    return task.interval(fit(task).statistic).value


def make_row(folder: Path, number: int, num_samples: int, label: str, **fields: object) -> dict[str, object]:
    name = f"r{number}"
    row = {"id": name, "utterance": name, "path": f"{name}.wav", "num_samples": num_samples, "sample_rate": RATE}
    row |= {"domain": "audio", "label": label, "split": PARTS[number % 5], "start": 0.0, "end": num_samples / RATE}
    return row | fields


def write_alignment(path: Path, rows: Sequence[tuple[str, float, float, str]]) -> None:
    columns = ["id", "start", "end", "phone", "word"]
    write_table(path, columns, [dict(zip(columns, (*row, "x"), strict=True)) for row in rows])


def write_sequences(folder: Path, *, with_text: bool = False) -> Path:
    """Write recordings of three tones with pauses, and their phones as an alignment or as text."""
    rows, alignment = [], []
    for number in range(20):
        names = np.random.default_rng(number).permutation(list(TONES)).tolist()
        sounds = [sound for name in names for sound in ("SIL", name)]
        num_samples = write_tone(folder / f"r{number}.wav", [TONES.get(s, 0.0) for s in sounds], number, seconds=0.1)
        rows.append(make_row(folder, number, num_samples, "", text=" ".join(names) if with_text else ""))
        alignment += [(f"r{number}", 0.1 * i, 0.1 * (i + 1), sound) for i, sound in enumerate(sounds)]
    write_table(folder / "phones.tsv", COLUMNS, rows)
    if not with_text:
        write_alignment(folder / "phones.alignment.tsv", alignment)
    return folder / "phones.tsv"


def write_voices(folder: Path, frequencies: Sequence[float], *, num_test: int) -> Path:
    """Write five recordings of each voice; the last voices are those to verify."""
    rows, num_train = [], len(frequencies) - num_test
    for voice, frequency in enumerate(frequencies):
        for take in range(5):
            number = 5 * voice + take
            size = write_tone(folder / f"r{number}.wav", [frequency, 2 * frequency], number)
            row = make_row(folder, number, size, f"voice{voice}", kind="verification")
            rows.append(row if voice >= num_train else row | {"split": "valid" if take == 4 else "train"})
            if voice >= num_train:
                rows[-1]["split"] = "test"
    write_table(folder / "voices.tsv", [*COLUMNS, "kind"], rows)
    tests = [str(row["id"]) for row in rows if row["split"] == "test"]
    pairs: list[dict[str, object]] = [{"enrolment": a, "test": b} for i, a in enumerate(tests) for b in tests[i + 1 :]]
    write_table(folder / "voices.trials.tsv", ["enrolment", "test"], pairs)
    return folder / "voices.tsv"


def write_sounds(folder: Path, kind: str) -> Path:
    """Write recordings with one or two tones at known times over noise."""
    rows, alignment = [], []
    for number in range(25):
        generator = np.random.default_rng(number)
        waveform = 0.01 * generator.standard_normal(RATE)
        names = generator.permutation(list(TONES))[: 1 + number % 2].tolist()
        for place, name in enumerate(names):
            start = round(0.02 * int(generator.integers(2, 10)) + 0.5 * place, 2)
            times = np.arange(round(0.2 * RATE)) / RATE
            waveform[round(start * RATE) :][: times.size] += 0.3 * np.sin(2 * np.pi * TONES[name] * times)
            alignment.append((f"r{number}", start, start + 0.2, name))
        soundfile.write(folder / f"r{number}.wav", waveform, RATE)
        rows.append(make_row(folder, number, RATE, "|".join(names), kind=kind))
    write_table(folder / "sounds.tsv", [*COLUMNS, "kind"], rows)
    write_alignment(folder / "sounds.alignment.tsv", alignment)
    return folder / "sounds.tsv"


@pytest.mark.parametrize("with_text", [False, True])
def test_ctc_recognizes_phones_of_an_alignment_or_a_text(tmp_path: Path, with_text: bool) -> None:
    short_steps = section()
    short_steps.head.batch_size, short_steps.head.max_epochs = 2, 40
    task = read_task(write_sequences(tmp_path, with_text=with_text), short_steps, kind="ctc")
    assert (task.kind, task.metric, task.is_error, task.chance) == ("ctc", "phone_error_rate", True, 1.0)
    assert task.items.classes == sorted(TONES)  # silence is no phone
    assert [len(item.labels) for item in task.items.items] == [3] * 20
    assert measure(task) < 0.2


def test_an_utterances_label_is_read_from_the_mean_of_its_frames(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        label = list(TONES)[number % 3]
        rows.append(make_row(tmp_path, number, write_tone(tmp_path / f"r{number}.wav", [TONES[label]], number), label))
    write_table(tmp_path / "words.tsv", COLUMNS, rows)
    task = read_task(tmp_path / "words.tsv", section(), kind="utterances")
    result = fit(task)
    assert isinstance(result.statistic, RatioStatistic)
    assert (task.metric, task.interval(result.statistic).value) == ("accuracy", 1.0)
    assert 0.0 < task.chance < 0.7
    assert result.layer_weights == [1.0]


def test_speakers_that_were_never_heard_are_verified(tmp_path: Path) -> None:
    path = write_voices(tmp_path, [200, 330, 550, 900, 1500, 260, 700], num_test=2)
    task = read_task(path, section())
    assert (task.kind, task.metric, task.is_error) == ("verification", "equal_error_rate", True)
    result = fit(task)
    assert result.statistic.num_clusters == 2
    assert task.interval(result.statistic).value < 0.1
    assert result.measures["equal_error_rate_of_means"] < 0.3


def test_scenes_of_several_labels_are_ranked(tmp_path: Path) -> None:
    task = read_task(write_sounds(tmp_path, "scenes"), section())
    assert (task.metric, task.items.classes) == ("mean_average_precision", sorted(TONES))
    result = fit(task)
    assert isinstance(result.statistic, AveragePrecisionStatistic)
    assert task.interval(result.statistic).value > 0.9
    assert task.chance == pytest.approx(result.statistic.targets.mean())


def test_timestamps_finds_sounds_and_when_they_begin(tmp_path: Path) -> None:
    task = read_task(write_sounds(tmp_path, "timestamps"), section())
    assert task.metric == "onset_f_measure"
    result = fit(task)
    assert task.interval(result.statistic).value > 0.8
    assert result.measures["segment_f_measure"] > 0.8


def test_the_configuration_names_kinds_and_results_stand_under_their_metric(tmp_path: Path) -> None:
    path = write_sequences(tmp_path)
    references: list[Path | dict[str, str]] = [path, {"path": str(path), "kind": "ctc", "name": "recognition"}]
    config = ProbeConfig(tasks=references, features=[SourceSection(name="mel", kind="log_mel")], probe=section())
    config.probe.l2_grid, config.probe.max_iterations = [1e-2], 5
    config.probe.head.max_epochs = 2
    config.common.torch.num_threads = 1
    results = run_probe(config, tmp_path / "out")
    assert results["phones", "mel"]["task_kind"] == "frames"
    recognition = results["recognition", "mel"]
    assert (recognition["task_kind"], recognition["mode"]) == ("ctc", "weighted")
    assert recognition["phone_error_rate"] == recognition["value"]
    assert results["phones", "mel"]["accuracy"] == results["phones", "mel"]["value"]
    assert run_probe(config, tmp_path / "out") == results  # kept


def test_files_that_do_not_fit_their_kind_are_named(tmp_path: Path) -> None:
    path = write_voices(tmp_path, [200, 330, 550, 900], num_test=2)
    trials = path.with_suffix(".trials.tsv")
    for content, pattern in (
        ("enrolment\ttest\nr10\tr0\n", r"trials.tsv: 'r0' is not in the test part of voices.tsv"),
        ("enrolment\ttest\nr10\tr11\n", r"trials.tsv: must have trials of one speaker and of two"),
        ("a\tb\n", r"trials.tsv: a list of trials must have the columns enrolment and test"),
    ):
        trials.write_text(content)
        with pytest.raises(ProbeError, match=pattern):
            read_task(path)
    trials.unlink()
    with pytest.raises(ProbeError, match=r"voices.trials.tsv: the trials cannot be read: No such file"):
        read_task(path)
    for kind, pattern in (
        ("timestamps", r"of the kind timestamps must have its events in voices.alignment.tsv"),
        ("frames", r"of the kind frames must have an alignment, voices.alignment.tsv"),
        ("ctc", r"the task has no labelled items"),
        ("speech", r"the kind must be one of frames, clips, ctc, .*, but is 'speech'"),
        ("clips", r"label\(s\) voice2, voice3 occur in the test split but not in training"),
    ):
        with pytest.raises(ProbeError, match=pattern):
            read_task(path, kind=kind)
    path.write_text(path.read_text().replace("verification", "clips", 1))
    with pytest.raises(ProbeError, match=r"`kind` must be the same in all rows, but is 'clips' and 'verification'"):
        read_task(path)


@pytest.mark.parametrize(
    ("tasks", "head", "pattern"),
    [
        ([{"path": "a.tsv", "kinds": "ctc"}], {}, r"`tasks` must be paths, or mappings of path, kind and name"),
        ([{"kind": "ctc"}], {}, r"`tasks` must be paths, or mappings of path, kind and name"),
        ([Path("a.tsv"), {"path": "b/a.tsv"}], {}, r"`tasks` must have different names, but has a, a"),
        ([Path("a.tsv")], {"learning_rates": []}, r"`learning_rates` must hold at least one number"),
        ([Path("a.tsv")], {"patience": 0}, r"`patience` must be at least 1, but is 0"),
        ([Path("a.tsv")], {"onset_tolerance": -0.1}, r"`onset_tolerance` must be positive, but is -0.1"),
    ],
)
def test_config_is_not_valid_when_tasks_or_heads_are_wrong(
    tasks: list[Path | dict[str, str]], head: dict[str, object], pattern: str
) -> None:
    config = ProbeConfig(features=[SourceSection(name="mel", kind="log_mel")], tasks=tasks)
    config.probe.head = HeadSection(**head)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=pattern):
        StandardObjectValidator().validate(config)

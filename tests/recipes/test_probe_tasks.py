from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from recipes.probe.config import ProbeConfig, ProbeSection, SourceSection, complete_sources
from recipes.probe.linear import frame_labels
from spear_plugin.evaluation import ProbeError, RatioStatistic
from tests.recipes.probe_corpora import COLUMNS, RATE, TONES, read_task, write_probe_corpus, write_table


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe_corpus(tmp_path_factory.mktemp("corpus"))


def test_frame_labels_names_the_segment_that_holds_the_centre_of_each_frame() -> None:
    # Centres at 10, 30, 50, 70, 90, 110 ms; a segment holds its start but not its end.
    segments = [(0.0, 0.03, "SIL"), (0.03, 0.07, "AA"), (0.07, 0.08, "T"), (0.08, 0.09, "K"), (0.09, 0.11, "IY")]

    assert frame_labels(segments) == [(0.01, "SIL"), (0.03, "AA"), (0.05, "AA"), (0.07, "T"), (0.09, "IY")]


def test_read_task_excludes_silence_and_draws_items_by_the_seed(corpus: Path) -> None:
    section = ProbeSection(max_train_items=50, max_test_items=20)

    task = read_task(corpus / "phones.tsv", section, seed=0)

    assert task.items.classes == sorted(TONES)

    (split,) = task.items.splits

    assert (split.tuning[0][0].numel(), split.test.numel()) == (50, 20)

    assert read_task(corpus / "phones.tsv", section, seed=0).items.digest == task.items.digest

    assert read_task(corpus / "phones.tsv", section, seed=1).items.digest != task.items.digest


def test_read_task_reads_the_same_share_of_files_for_tasks_on_the_same_corpus(corpus: Path) -> None:
    limited = read_task(corpus / "phones.tsv", ProbeSection(max_task_minutes=0.15), seed=3)

    more = read_task(corpus / "phones.tsv", ProbeSection(max_task_minutes=0.2), seed=3)

    assert 1 < len(limited.items.clips) <= len(more.items.clips) < 15

    assert {clip.id for clip in limited.items.clips} <= {clip.id for clip in more.items.clips}


def test_read_task_uses_folds_when_the_file_has_them(corpus: Path) -> None:
    task = read_task(corpus / "events.tsv", ProbeSection(), seed=0)

    assert len(task.items.splits) == 3

    assert task.items.test.sort().values.tolist() == list(range(18))


def test_a_repeated_cross_validation_draws_other_folds_and_averages_over_them(corpus: Path) -> None:
    task, repeated, again = (
        read_task(corpus / "events.tsv", ProbeSection(l2_grid=[1e-2], fold_repeats=n), seed=0) for n in (1, 4, 4)
    )
    tests = [[split.test.tolist() for split in each.items.splits] for each in (task, repeated, again)]
    assert tests[1] == tests[2]

    divisions = [tests[1][first : first + 3] for first in range(0, 12, 3)]
    assert divisions[0] == tests[0]
    assert all(sorted(item for test in division for item in test) == list(range(18)) for division in divisions)
    assert len({str(division) for division in divisions}) == 4
    assert repeated.items.num_test == 18

    # Without anything to learn from, each item is right in some of the divisions only.
    features = torch.randn((1, 1, 18, 2), generator=torch.Generator().manual_seed(0))
    statistic = repeated.fit(features, "best", report=lambda: None).statistic
    assert isinstance(statistic, RatioStatistic)
    assert statistic.denominators.tolist() == [4.0] * 18
    assert {1.0, 2.0, 3.0} & set(statistic.numerators.tolist())


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

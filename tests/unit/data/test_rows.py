from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from spear_plugin.data.dataset import CorpusConfig, SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.options import ClassBalance, ReaderOptions, SpearDatasetError
from tests.unit.data.common import make_corpus
from tests.unit.data.test_dataset import open_reader, read_batches

OPTIONS = ReaderOptions(max_batch_seconds=4.0, min_seconds=0.2, max_seconds=2.0, num_buckets=2)


def make_labelled(folder: Path, labels: list[str]) -> CorpusConfig:
    """Write a corpus of half-second recordings with these labels and texts like `text 0`."""
    corpus = make_corpus(folder, "speech", [0.5] * len(labels))
    rows = read_manifest(corpus.manifest)
    labelled = [
        replace(row, label=label, text=f"text {i}") for i, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    write_manifest(corpus.manifest, labelled)
    return replace(corpus, codes={})


def test_labels_of_a_row_are_what_bars_separate_each_once() -> None:
    row = ManifestRow(id="a", path=Path("a"), num_samples=1, sample_rate=1, domain="audio", label=" dog|cat |dog||")
    assert row.labels == ("dog", "cat")
    assert replace(row, label="Male speech, man speaking").labels == ("Male speech, man speaking",)
    assert replace(row, label="").labels == ()


def test_a_batch_has_text_and_labels_of_each_example(tmp_path: Path) -> None:
    corpus = make_labelled(tmp_path, ["a", "b|a", ""])
    batches = read_batches(open_reader(corpus, options=replace(OPTIONS, shuffle=False)))
    said = {id_: (text, labels) for b in batches for id_, text, labels in zip(b.ids, b.texts, b.labels, strict=True)}
    assert said == {"speech0": ("text 0", ("a",)), "speech1": ("text 1", ("b", "a")), "speech2": ("text 2", ())}


def test_rows_that_a_check_objects_to_are_left_out_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_labelled(tmp_path, ["a", "x", "b", "x"])
    options = replace(OPTIONS, shuffle=False, row_check=lambda row: "with an x" if "x" in row.labels else None)
    batches = read_batches(open_reader(corpus, options=options))
    assert sorted(id_ for batch in batches for id_ in batch.ids) == ["speech0", "speech2"]
    assert "skipping 2 of 4 rows, with an x: 'speech1', 'speech3'" in caplog.text
    with pytest.raises(
        SpearDatasetError, match=r"2 of 4 rows cannot be used, more than `max_skipped` \(1\).*'speech1'"
    ):
        open_reader(corpus, options=replace(options, max_skipped=1))
    with pytest.raises(SpearDatasetError, match="or all of them: 4 all the same"):
        open_reader(corpus, options=replace(options, row_check=lambda row: "all the same"))


def drawn_labels(corpus: CorpusConfig, balance: ClassBalance | None, num_steps: int = 40) -> Counter[tuple[str, ...]]:
    reader = open_reader(corpus, options=replace(OPTIONS, balance=balance))
    return Counter(labels for batch in read_batches(reader, num_steps) for labels in batch.labels)


def test_balance_draws_rare_classes_as_often_as_frequent_ones(tmp_path: Path) -> None:
    corpus = make_labelled(tmp_path, ["rare", *["frequent"] * 9])
    plain, balanced = drawn_labels(corpus, None), drawn_labels(corpus, ClassBalance())
    assert plain[("rare",)] / plain.total() == pytest.approx(0.1, abs=0.02)
    assert balanced[("rare",)] / balanced.total() == pytest.approx(0.5, abs=0.1)
    # 1 / (1 + 9) against 9 / (9 + 9)
    smoothed = drawn_labels(corpus, ClassBalance(smoothing=9.0))
    assert smoothed[("rare",)] / smoothed.total() == pytest.approx(1 / 6, abs=0.06)


def test_a_row_with_several_classes_is_drawn_for_each_and_one_without_never(tmp_path: Path) -> None:
    drawn = drawn_labels(make_labelled(tmp_path, ["a|b", "a", "b", ""]), ClassBalance())
    assert drawn[("a", "b")] / drawn.total() == pytest.approx(0.5, abs=0.1)
    assert () not in drawn


def test_balance_needs_labels_and_leaves_validation_alone(tmp_path: Path) -> None:
    corpus = make_labelled(tmp_path, ["", ""])
    with pytest.raises(SpearDatasetError, match="drawn by class, but none has a label"):
        open_reader(corpus, options=replace(OPTIONS, balance=ClassBalance()))
    options = replace(OPTIONS, shuffle=False, balance=ClassBalance())
    assert sum(batch.num_examples for batch in read_batches(open_reader(corpus, options=options))) == 2


def test_a_dataset_lists_all_rows_of_a_split(tmp_path: Path) -> None:
    corpus = make_labelled(tmp_path, ["a", "b"])
    dataset = open_spear_dataset(SpearDatasetConfig(train=[corpus]))
    assert [row.label for row in dataset.rows("train")] == ["a", "b"]
    assert list(dataset.rows("valid")) == []

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes.abx.config import AbxSourceSection
from recipes.abx.items import find_items, phone_moments, write_items
from recipes.abx.reading import StoreReader
from recipes.abx.recipe import AbxRecipe
from recipes.corpus.align import Aligner
from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import read_manifest, write_manifest
from tests.common import DATA_FOLDER
from tests.recipes.abx_toys import PHONES, draw_frames, naive_error, number_phones, write_store, write_toy_corpus
from tests.recipes.common import call_recipe, save_run, save_spidr_run
from tests.unit.models.spear.test_released import narrow_config

ENVIRONMENT = Path(__file__).parents[2] / ".venv-abx"

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the recipe on the manifest of a folder, by default on single phones in any context."""
    if not (ENVIRONMENT / ".setup-complete").is_file():
        pytest.skip("needs fastabx: `make abx-env`, which `.ci/run` does")

    def call(features: str, *options: str, out: str = "out") -> tuple[int, list[str]]:
        arguments = [
            str(tmp_path / out), "--config", f"features={features}", f"corpus.manifest={tmp_path / 'clips.tsv'}",
            f"abx.environment={ENVIRONMENT}", "abx.unit=phoneme", "abx.context=any", *options,
        ]  # fmt: skip
        return call_recipe(AbxRecipe(), arguments, monkeypatch, capsys)

    return call


def read_results(out: Path) -> dict[tuple[str, int], dict[str, str]]:
    """Return the lines of abx.tsv by source and layer."""
    header, *lines = [line.split("\t") for line in (out / "abx.tsv").read_text().splitlines()]
    records = [dict(zip(header, line, strict=True)) for line in lines]
    return {(record["source"], int(record["layer"])): record for record in records}


def test_what_separates_phones_has_no_errors_and_what_is_random_half(evaluate: Call, tmp_path: Path) -> None:
    alignment = write_toy_corpus(tmp_path)
    frames = draw_frames(alignment)
    store = write_store(tmp_path / "features", tmp_path, frames)
    perfect = {id_: torch.tensor(number_phones(s), dtype=torch.int16) for id_, s in alignment.items()}
    units = write_store(tmp_path / "units", tmp_path, perfect)
    constant = write_store(tmp_path / "one", tmp_path, {id_: torch.zeros_like(u) for id_, u in perfect.items()})
    sources = [("features", store), ("units", units), ("one", constant)]
    features = ", ".join(f"{{name: {name}, kind: store, store: {folder}}}" for name, folder in sources)
    assert evaluate(f"[{features}]") == (0, [])

    results = read_results(tmp_path / "out")
    assert set(results) == {("features", 1), ("features", 2), ("units", 0), ("one", 0)}
    for name in ("within", "across"):
        assert float(results["features", 1][name]) == float(results["units", 0][name]) == 0.0
        assert float(results["features", 2][name]) == pytest.approx(0.5, abs=0.08)
        assert float(results["one", 0][name]) == 0.5
    assert [results[key]["distance"] for key in (("features", 1), ("units", 0))] == ["angular", "identical"]
    assert results["features", 1]["pnmi"] == ""
    assert {name: float(results["units", 0][name]) for name in ("pnmi", "phone_purity", "cluster_purity")} == {
        "pnmi": 1.0, "phone_purity": 1.0, "cluster_purity": 1.0,
    }  # fmt: skip
    assert float(results["one", 0]["pnmi"]) == 0.0
    assert float(results["one", 0]["num_active"]) == 1
    # One run of equal units in half a second, two bits for four units.
    assert float(results["one", 0]["bitrate"]) == pytest.approx(2 / 0.5)
    assert (tmp_path / "out" / "abx.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "items.item").read_text().splitlines()[1].startswith("clip%200 0.0500 0.1000 ")
    assert not (tmp_path / "out" / ".exchange").exists()


@pytest.mark.parametrize("context", ["any", "within"])
def test_errors_are_those_of_the_definition(evaluate: Call, tmp_path: Path, context: str) -> None:
    alignment = write_toy_corpus(tmp_path, num_rows=9, num_speakers=3)
    frames = draw_frames(alignment, dim=4)
    store = write_store(tmp_path / "features", tmp_path, frames)
    everything = ("abx.max_group_size=1000", "abx.max_x_across=1000", f"abx.context={context}")
    assert evaluate(f"[{{name: toy, kind: store, store: {store}}}]", *everything) == (0, [])
    result = read_results(tmp_path / "out")["toy", 2]
    speakers = {row.id: row.speaker for row in read_manifest(tmp_path / "clips.tsv")}
    layer = {id_: both[1] for id_, both in frames.items()}
    for name in ("within", "across"):
        expected = naive_error(alignment, speakers, layer, has_context=context == "within", is_across=name == "across")
        assert float(result[name]) == pytest.approx(expected, abs=1e-4)


def test_frames_are_looked_up_where_they_are(evaluate: Call, tmp_path: Path) -> None:
    alignment = write_toy_corpus(tmp_path)
    late = {id_: both[:1].roll(1, dims=1) for id_, both in draw_frames(alignment).items()}  # 50 ms late
    store = write_store(tmp_path / "features", tmp_path, late)
    sources = (
        f"[{{name: now, kind: store, store: {store}}}, {{name: then, kind: store, store: {store}, time_shift: 0.05}}]"
    )
    assert evaluate(sources) == (0, [])
    results = read_results(tmp_path / "out")
    assert float(results["then", 1]["within"]) == 0.0 < float(results["now", 1]["within"])


def test_recordings_of_other_manifests_are_left_out_and_one_speaker_has_no_across(
    evaluate: Call, tmp_path: Path
) -> None:
    alignment = write_toy_corpus(tmp_path, num_speakers=1)
    rows = read_manifest(tmp_path / "clips.tsv")
    write_manifest(tmp_path / "train.tsv", rows[:4])
    frames = {id_: both for id_, both in draw_frames(alignment).items() if id_ not in {row.id for row in rows[:4]}}
    store = write_store(tmp_path / "features", tmp_path, frames)
    source = f"[{{name: toy, kind: store, store: {store}}}]"
    assert evaluate(source, f"corpus.exclude=[{tmp_path / 'train.tsv'}]") == (0, [])
    result = read_results(tmp_path / "out")["toy", 1]
    assert (result["within"], result["across"], result["num_items"]) == ("0.0000", "", str(8 * 8))
    code, lines = evaluate(source, out="all")
    assert (code, len(lines)) == (2, 1)
    assert "has no features of 'clip 0'" in lines[0]


def test_stores_that_do_not_name_the_number_of_units_have_those_up_to_the_highest(tmp_path: Path) -> None:
    alignment = write_toy_corpus(tmp_path)
    units = {id_: torch.tensor(number_phones(segments), dtype=torch.int16) for id_, segments in alignment.items()}
    store = write_store(tmp_path / "units", tmp_path, {id_: 2 * sequence for id_, sequence in units.items()})
    section = AbxSourceSection(name="units", kind="store", store=store)
    assert StoreReader(section).num_units == 4
    meta = json.loads((store / "meta.json").read_text())
    del meta["num_units"]
    (store / "meta.json").write_text(json.dumps(meta))
    assert StoreReader(section).num_units == 2 * len(PHONES) + 1


def test_a_second_run_keeps_what_is_finished(evaluate: Call, tmp_path: Path) -> None:
    alignment = write_toy_corpus(tmp_path)
    store = write_store(tmp_path / "features", tmp_path, draw_frames(alignment))
    one = f"{{name: one, kind: store, store: {store}}}"
    assert evaluate(f"[{one}]") == (0, [])
    path = tmp_path / "out" / "results" / "one.json"
    kept, written = path.read_bytes(), path.stat().st_mtime_ns
    other = f"{{name: other, kind: store, store: {store}, distance: euclidean}}"
    assert evaluate(f"[{one}, {other}]") == (0, [])
    assert path.stat().st_mtime_ns == written
    assert {source for source, _ in read_results(tmp_path / "out")} == {"one", "other"}
    path.write_bytes(kept[:-20])  # as if cut off
    assert evaluate(f"[{one}, {other}]") == (0, [])
    assert json.loads(path.read_bytes())["layers"] == json.loads(kept)["layers"]
    written = path.stat().st_mtime_ns
    assert evaluate(f"[{one}]", "abx.max_group_size=5") == (0, [])
    assert path.stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("features", "options", "pattern"),
    [
        ("[]", [], r"`features` must name at least one source"),
        ("[{name: a, kind: log_mel}, {name: a, kind: log_mel}]", [], r"`features` must have different names"),
        ("[{name: a, kind: store}]", [], r"`store` must be set"),
        ("[{name: a, kind: log_mel, distance: far}]", [], r"`distance` must be one of auto, angular"),
        ("[{name: a, kind: log_mel}]", ["abx.unit=triphone"], r"`context` must be within when `unit` is triphone"),
        ("[{name: a, kind: log_mel}]", ["abx.max_group_size=1"], r"`max_group_size` must be at least 2"),
        ("[{name: a, kind: log_mel}]", ["corpus.max_failures=1"], r"`max_failures` must be 0"),
        ("[{name: a, kind: log_mel}]", ["alignment=lost.tsv"], r"lost.tsv: the alignment cannot be read"),
        ("[{name: a, kind: log_mel}]", ["abx.environment=nowhere"], r"nowhere is no finished .*`make abx-env`"),
        ("[{name: a, kind: log_mel}]", [], r"0.wav: .*Leave the recording out of the manifest"),
        ("[{name: a, checkpoint: nobody}]", [], r"features 'a', `checkpoint`: must be the name of a card"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(
    evaluate: Call, tmp_path: Path, features: str, options: list[str], pattern: str
) -> None:
    write_toy_corpus(tmp_path)
    code, lines = evaluate(features, *options)
    assert (code, len(lines)) == (2, 1)
    assert re.search(pattern, lines[0])


def test_stores_without_frames_or_contrasts_are_refused_in_one_line(evaluate: Call, tmp_path: Path) -> None:
    alignment = write_toy_corpus(tmp_path)
    units = {id_: torch.zeros(3, dtype=torch.int16) for id_ in alignment}
    store = write_store(tmp_path / "runs", tmp_path, units, pooling="runs")
    code, lines = evaluate(f"[{{name: a, kind: store, store: {store}}}]")
    assert (code, len(lines)) == (2, 1)
    assert "`pooling` runs. Write it without pooling, and units without `deduplicate`" in lines[0]

    one_phone = {id_: [Segment(0.0, 0.1, "AA", "")] for id_ in alignment}
    write_alignment(tmp_path / "clips.alignment.tsv", one_phone)
    store = write_store(tmp_path / "features", tmp_path, draw_frames(one_phone))
    code, lines = evaluate(f"[{{name: a, kind: store, store: {store}}}]", out="contrasts")
    assert (code, len(lines)) == (2, 1)
    assert "fastabx failed: " in lines[0]
    assert "EmptyTaskError" in lines[0]


def test_items_of_a_real_alignment_are_its_triphones(tmp_path: Path) -> None:
    row = next(row for row in read_manifest(DATA_FOLDER / "speech.tsv") if row.label == "one-moment-please")
    segments = Aligner()(read_audio(row.path), row.text)
    spoken = [segment for segment in segments if segment.phone != "SIL"]
    assert [segment.phone for segment in spoken] == "W AH N M OW M AH N T P L IY Z".split()  # noqa: SIM905
    items = find_items(row, segments, with_neighbours=True, ignored=set())
    write_items(tmp_path / "items.item", items)
    header, *lines = (tmp_path / "items.item").read_text().splitlines()
    assert header == "#file onset offset #phone prev-phone next-phone speaker"
    # Triphones with a silence between two of their phones do not exist.
    expected = [
        f"asterisk/en/one-moment-please {a.start:.4f} {c.end:.4f} {b.phone} {a.phone} {c.phone} en_US_f_Allison"
        for a, b, c in zip(segments, segments[1:], segments[2:], strict=False)
        if "SIL" not in (a.phone, b.phone, c.phone)
    ]
    assert lines == expected
    assert len(lines) >= 9
    alone = find_items(row, segments, with_neighbours=False, ignored={"Z"})
    assert [(item.phone, item.onset, item.offset) for item in alone] == [(s.phone, s.start, s.end) for s in spoken[:-1]]
    assert (alone[0].previous, alone[-1].next) == ("SIL", "SIL")


def test_moments_are_in_the_segment_that_holds_them() -> None:
    segments = [Segment(0.0, 0.03, "SIL", ""), Segment(0.03, 0.05, "AA", ""), Segment(0.05, 0.2, "+NSN+", "")]
    times, phones = phone_moments([*segments, Segment(0.2, 0.3, "IY", "")], {"AA": 0, "IY": 1, "SIL": 2}, 0.22)
    assert times.tolist() == [0.005, 0.015, 0.025, 0.035, 0.045, 0.205, 0.215]
    assert phones.tolist() == [2, 2, 2, 0, 0, 1, 1]


def test_models_and_log_mel_are_compared_on_real_speech(evaluate: Call, tmp_path: Path) -> None:
    rows = read_manifest(DATA_FOLDER / "speech.tsv")[:6]
    write_manifest(tmp_path / "clips.tsv", rows)
    aligner = Aligner()
    write_alignment(tmp_path / "clips.alignment.tsv", {row.id: aligner(read_audio(row.path), row.text) for row in rows})
    spear, spidr = save_run(tmp_path / "spear", seed=1, config=narrow_config()), save_spidr_run(tmp_path / "spidr")
    sources = (
        f"[{{name: spear, checkpoint: {spear}}}, {{name: spidr, checkpoint: {spidr}}}, {{name: mel, kind: log_mel}}, "
        f"{{name: fresh, kind: untrained, checkpoint: {spidr}}}, {{name: whisper, kind: teacher}}]"
    )
    assert evaluate(sources, "abx.max_group_size=4") == (0, [])
    results = read_results(tmp_path / "out")
    layers = {"spear": 3, "spidr": 3, "mel": 1, "fresh": 3, "whisper": 1}
    assert set(results) == {(name, layer) for name, count in layers.items() for layer in range(1, count + 1)}
    errors = {key: float(result["within"]) for key, result in results.items()}
    assert errors["whisper", 1] < errors["mel", 1] < 0.25
    assert all(0.2 < errors["spear", layer] < 0.4 for layer in (1, 2, 3))
    # A SpidR model of this size knows nothing without training.
    assert all(0.4 < errors[name, layer] < 0.6 for name in ("spidr", "fresh") for layer in (1, 2, 3))
    assert errors["spidr", 1] != errors["fresh", 1]
    assert {result["across"] for result in results.values()} == {""}

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from fairseq2.device import CPU
from safetensors.torch import load_file
from sklearn.cluster import MiniBatchKMeans

from recipes.features import FeatureSection, open_source
from recipes.spidr.units.recipe import SpidrUnitsRecipe
from spear_plugin.data.audio import read_audio
from spear_plugin.data.features import FeatureStore
from spear_plugin.data.manifest import read_manifest
from spear_plugin.models.spidr import standardize_waveforms
from tests.common import DATA_FOLDER, assert_close
from tests.recipes.common import call_recipe, create_small_spidr_model, save_run, save_spidr_run
from tests.recipes.test_extract import write_rows
from tests.unit.models.spear.test_released import narrow_config

ROWS = read_manifest(DATA_FOLDER / "speech.tsv")[:5]
LAYER = 2  # of three, the last two of which have a head

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_spidr_run(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def make_units(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the recipe on five prompts and a file that is none, in shards of about two."""
    (tmp_path / "bad.wav").write_bytes(b"RIFF, and then nothing")
    lines = [f"{row.id}\t{row.path}\t{row.num_samples}\t{row.sample_rate}" for row in ROWS]
    lines.insert(2, f"bad\t{tmp_path / 'bad.wav'}\t16000\t16000")
    manifest = write_rows(tmp_path / "speech.tsv", lines)
    seconds = 2 * max(row.duration for row in ROWS)

    def call(*options: str, out: str = "out", checkpoint: Path | str = run) -> tuple[int, list[str]]:
        arguments = [
            str(tmp_path / out), "--config", f"checkpoint={checkpoint}", f"corpus.manifest={manifest}",
            f"layer={LAYER}", f"corpus.max_shard_seconds={seconds:.2f}", *options,
        ]  # fmt: skip
        return call_recipe(SpidrUnitsRecipe(), arguments, monkeypatch, capsys)

    return call


def read_alone(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return head probabilities and features of a prompt as the model gives them for it alone."""
    waveform = torch.from_numpy(read_audio(ROWS[index].path))[None]
    waveform = standardize_waveforms(waveform, torch.tensor([waveform.size(1)]))
    with torch.inference_mode():
        model = create_small_spidr_model()
        features = model.extract_features(waveform, None, num_layers=LAYER).layers[-1][0]
        return model.unit_probabilities(waveform, None, LAYER)[0], features


def read_text(folder: Path) -> dict[str, list[int]]:
    lines = (folder / "units.txt").read_text().splitlines()
    return {id_: [int(unit) for unit in units.split()] for id_, units in (line.split("\t") for line in lines)}


def test_units_are_the_likeliest_codes_as_text_and_as_a_store(make_units: Call, tmp_path: Path) -> None:
    assert make_units() == (0, [])
    text, store = read_text(tmp_path / "out"), FeatureStore(tmp_path / "out")
    assert list(text) == list(store) == [row.id for row in ROWS]
    assert store.meta.num_shards > 1
    assert (store.meta.frame_rate_hz, store.meta.first_centre) == (50.0, 0.0125)
    for index, row in enumerate(ROWS):
        assert store[row.id].dtype == torch.int16
        assert store[row.id].tolist() == text[row.id]
        assert text[row.id] == read_alone(index)[0].argmax(dim=1).tolist()
    assert "bad" in (tmp_path / "out" / "failed.tsv").read_text()
    assert "times real time" in "".join(path.read_text() for path in (tmp_path / "out" / "logs").glob("rank_0*"))

    assert make_units("deduplicate=true", out="runs") == (0, [])
    runs, store = read_text(tmp_path / "runs"), FeatureStore(tmp_path / "runs")
    for row in ROWS:
        assert runs[row.id] == [unit for unit, _ in groupby(text[row.id])]
        assert store.num_frames(row.id) == len(text[row.id]) > len(runs[row.id])


def test_probabilities_and_features_are_those_of_each_recording_alone(make_units: Call, tmp_path: Path) -> None:
    for content, dtype in (("probabilities", "float32"), ("features", "float16")):
        assert make_units(f"content={content}", f"dtype={dtype}", out=content) == (0, [])
        assert not (tmp_path / content / "units.txt").exists()
    probabilities, features = (FeatureStore(tmp_path / name) for name in ("probabilities", "features"))
    for index, row in enumerate(ROWS):
        expected_probabilities, expected_features = read_alone(index)
        assert_close(probabilities[row.id], expected_probabilities, atol=1e-5, rtol=0.0)
        assert_close(features[row.id], expected_features.half(), atol=1e-3, rtol=1e-3)


def test_clusters_are_fitted_to_features_and_serve_other_corpora(make_units: Call, tmp_path: Path) -> None:
    options = ("units_from=kmeans", "kmeans.num_clusters=12")
    assert make_units(*options) == (0, [])
    text = read_text(tmp_path / "out")
    features = torch.cat([read_alone(index)[1] for index in range(len(ROWS))])
    centres = load_file(tmp_path / "out" / "kmeans.safetensors")["centres"]
    assert centres.shape == (12, features.size(1))
    distances = torch.cdist(features, centres).min(dim=1).values
    best = MiniBatchKMeans(12, batch_size=4096, n_init=3, random_state=0).fit(features.numpy())
    assert distances.square().sum() < 1.2 * best.inertia_
    for index, row in enumerate(ROWS):
        assert text[row.id] == torch.cdist(read_alone(index)[1], centres).argmin(dim=1).tolist()

    path = tmp_path / "out" / "kmeans.safetensors"
    assert make_units("units_from=kmeans", f"kmeans.path={path}", out="other") == (0, [])
    assert read_text(tmp_path / "other") == text


@pytest.mark.parametrize("kind", ["log_mel", "teacher"])
def test_clusters_of_other_sources_are_a_baseline(make_units: Call, tmp_path: Path, kind: str) -> None:
    assert make_units(f"kind={kind}", "layer=1", "units_from=kmeans", "kmeans.num_clusters=12") == (0, [])
    text, store = read_text(tmp_path / "out"), FeatureStore(tmp_path / "out")
    centres = load_file(tmp_path / "out" / "kmeans.safetensors")["centres"]
    source = open_source(FeatureSection(kind=kind), device=CPU)
    assert (store.meta.num_units, store.meta.first_centre) == (12, 0.010)
    for row in ROWS:
        waveform = torch.from_numpy(read_audio(row.path))[None]
        layers, _ = source.extract(waveform, torch.tensor([waveform.size(1)]))
        assert text[row.id] == torch.cdist(layers[0][0], centres).argmin(dim=1).tolist()


def test_clusters_of_a_spear_layer_are_units_too(make_units: Call, tmp_path: Path) -> None:
    run = save_run(tmp_path / "spear", seed=1, config=narrow_config())
    assert make_units("layer=3", "units_from=kmeans", "kmeans.num_clusters=5", checkpoint=run) == (0, [])
    assert FeatureStore(tmp_path / "out").meta.first_centre == 0.045
    text, centres = read_text(tmp_path / "out"), load_file(tmp_path / "out" / "kmeans.safetensors")["centres"]
    source = open_source(FeatureSection(checkpoint=str(run)), device=CPU)
    with torch.inference_mode():
        for row in ROWS:
            waveform = torch.from_numpy(read_audio(row.path))[None]
            third = source.extract(waveform, torch.tensor([waveform.size(1)]))[0][2][0]
            assert text[row.id] == torch.cdist(third, centres).argmin(dim=1).tolist()


def test_a_run_goes_on_with_the_shards_that_are_missing(make_units: Call, tmp_path: Path) -> None:
    assert make_units("units_from=kmeans", "kmeans.num_clusters=12") == (0, [])
    out = tmp_path / "out"
    expected, shards = (out / "units.txt").read_bytes(), sorted(out.glob("shard-*"))
    (out / "units.txt").unlink()
    shards[0].unlink()
    kept = shards[1].stat().st_mtime_ns
    assert make_units("units_from=kmeans", "kmeans.num_clusters=12") == (0, [])
    assert (out / "units.txt").read_bytes() == expected
    assert shards[1].stat().st_mtime_ns == kept
    # Other units would not fit those that are there.
    code, lines = make_units()
    assert (code, len(lines)) == (2, 1)
    assert "holds features of another extraction" in lines[0]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["layer=1"], r"`layer` must be one with a head, from 2 to 3, but is 1"),
        (["layer=4", "content=features"], r"`layer` must be one of SpidR, from 1 to 3, but is 4"),
        (["content=codes"], r"`content` must be one of units, probabilities, features, but is 'codes'"),
        (["units_from=kmeans", "kmeans.num_clusters=30000"], r"`kmeans.num_clusters` must be at most the \d+ frames"),
        (["units_from=kmeans", "kmeans.path=nowhere.safetensors"], r"nowhere.safetensors: cannot be read as clusters"),
        (["checkpoint=nobody"], r"`checkpoint`: must be the name of a card"),
        (["kind=log_mel", "units_from=kmeans"], r"`layer` must be one of log-mel, from 1 to 1, but is 2"),
        (["kind=log_mel"], r"`units_from` must be kmeans, or `content` features, when `kind` is log_mel"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(make_units: Call, options: list[str], pattern: str) -> None:
    code, lines = make_units(*options)
    assert (code, len(lines)) == (2, 1)
    assert re.search(pattern, lines[0])


def test_a_model_of_another_family_is_refused_in_one_line(make_units: Call, tmp_path: Path) -> None:
    code, lines = make_units(checkpoint=save_run(tmp_path / "spear", seed=1))
    assert (code, len(lines)) == (2, 1)
    assert "must be a model of the family spidr" in lines[0]
    shutil.rmtree(tmp_path / "spear")

"""The recipe as a whole; tests/recipes/test_probe_{tasks,sources,kinds}.py have its parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.recipe.run import run

import recipes.probe.recipe as probe_recipe
from recipes.feature_sources import FeatureSource
from recipes.probe.config import SourceSection
from recipes.probe.extraction import extract_features
from recipes.probe.recipe import ProbeRecipe
from recipes.probe.results import ProbeResult, ResultStore
from recipes.probe.tasks import Features, ProbeTask
from spear_plugin.data.audio import AudioError
from spear_plugin.evaluation import (
    AveragePrecisionStatistic,
    EqualErrorStatistic,
    RatioStatistic,
    Statistic,
)
from tests.common import assert_equal
from tests.recipes.common import call_recipe, save_run, save_spidr_run
from tests.recipes.probe_corpora import make_config, run_probe, write_probe_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe_corpus(tmp_path_factory.mktemp("corpus"))


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

    def count(source: FeatureSource, tasks: list[ProbeTask], **options: Any) -> list[Features]:
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


@pytest.mark.parametrize(
    ("statistic", "part"),
    [
        (RatioStatistic(np.array([1.0, 0.0]), np.array([1.0, 2.0])), "denominators"),
        (EqualErrorStatistic(np.array([0.5, 0.25]), np.array([0, 0]), np.array([0, 1])), "scores"),
        (AveragePrecisionStatistic(np.array([[0.5], [0.1]]), np.array([[True], [False]])), "targets"),
    ],
)
def test_result_store_ignores_results_of_another_identity(tmp_path: Path, statistic: Statistic, part: str) -> None:
    store = ResultStore(tmp_path)

    settings: dict[str, Any] = dict.fromkeys(ProbeResult.__dataclass_fields__, 0)

    result = ProbeResult(
        **settings | {"identity": "a", "task": "t", "source": "s", "layers": [], "statistic": statistic}
    )

    store.save(result)

    found = store.find("t", "s", "a")

    assert found is not None

    assert vars(found).keys() == vars(result).keys()

    assert_equal(torch.from_numpy(getattr(found.statistic, part)), torch.from_numpy(getattr(statistic, part)))

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

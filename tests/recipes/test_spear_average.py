from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recipes.common import main
from recipes.features import open_source
from recipes.probe.config import SourceSection
from recipes.spear.average.recipe import SpearAverageRecipe
from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from spear_plugin.models.spear import get_spear_model_hub
from spear_plugin.optim.averaging import RUNNING_AVERAGE_FILE, RunningAverage
from tests.recipes.common import TINY_DEMO, call_recipe, find_run_card, write_test_codes
from tests.recipes.test_spear_pretrain import SHORT_RUN

Call = Callable[..., tuple[int, list[str]]]

RUNNING = "running_average.every_n_steps=2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of the steps 2, 3, ... 7 and a running average over each second step."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert train(folder, monkeypatch, RUNNING) == 0
    return folder / "run"


@pytest.fixture
def average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*options: str) -> tuple[int, list[str]]:
        arguments = [str(tmp_path / "out"), "--config", *options]
        return call_recipe(SpearAverageRecipe(), arguments, monkeypatch, capsys)

    return call


def test_the_mean_of_the_last_checkpoints_is_that_by_hand(finished: Path, average: Call, tmp_path: Path) -> None:
    assert average(f"run={finished}", "last_n=3") == (0, [])
    result, states = read_result(tmp_path / "out"), [read_checkpoint(finished, step) for step in (5, 6, 7)]
    assert_mean(result, states)
    assert result.keys() == states[0].keys()
    for key in result:
        assert result[key].dtype == states[2][key].dtype
        if not result[key].is_floating_point():
            assert torch.equal(result[key], states[2][key])


def test_steps_can_be_named_and_by_default_all_count(finished: Path, average: Call, tmp_path: Path) -> None:
    assert average(f"run={finished}", "steps=[2, 5]") == (0, [])
    assert_mean(read_result(tmp_path / "out"), [read_checkpoint(finished, step) for step in (2, 5)])
    shutil.rmtree(tmp_path / "out")
    assert average(f"run={finished}") == (0, [])
    assert_mean(read_result(tmp_path / "out"), [read_checkpoint(finished, step) for step in range(2, 8)])


@pytest.mark.parametrize(
    ("options", "snapshots"),
    [
        (["last_n=4"], (4, 6)),  # from the checkpoint of step 3 to that of step 7
        (["steps=[4, 7]"], (6,)),
        (["steps=[0, 6]"], (2, 4, 6)),
        (["steps=[5]"], (2, 4)),
        ([], (2, 4, 6)),
    ],
)
def test_the_running_average_is_the_mean_of_its_snapshots(
    finished: Path, average: Call, tmp_path: Path, options: list[str], snapshots: tuple[int, ...]
) -> None:
    assert average(f"run={finished}", "mode=running", *options) == (0, [])
    assert_mean(read_result(tmp_path / "out"), [read_checkpoint(finished, step) for step in snapshots], tolerance=1e-7)


def test_the_running_average_changes_nothing_in_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path, monkeypatch) == 0
    plain, averaged = read_checkpoint(tmp_path / "run", 7), read_checkpoint(finished, 7)
    assert all(torch.equal(plain[key], averaged[key]) for key in averaged)
    assert not list((tmp_path / "run").rglob("hook"))


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_goes_on_with_the_same_running_average(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    assert train(tmp_path, monkeypatch, RUNNING, f"regime.num_steps={stop}") == 0
    assert train(tmp_path, monkeypatch, RUNNING) == 0
    expected, result = (
        load_file(run / "checkpoints" / "step_7" / RUNNING_AVERAGE_FILE) for run in (finished, tmp_path / "run")
    )
    assert expected.keys() == result.keys()
    assert all(value.dtype == torch.float64 and torch.equal(value, result[key]) for key, value in expected.items())


def test_going_on_with_or_without_what_the_run_has_is_told_in_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")

    def resume(*options: str) -> str:
        arguments = pretrain_arguments(tmp_path, "regime.num_steps=8", *options)
        code, lines = call_recipe(SpearPretrainRecipe(), arguments, monkeypatch, capsys)
        assert (code, len(lines)) == (2, 1)
        return lines[0]

    assert "must stay 2" in resume("running_average.every_n_steps=4")
    assert "regime.save_model_only" in resume(RUNNING, "regime.save_model_only=true")
    assert "must not be set" in resume(RUNNING, "trainer.data_parallelism=fsdp")
    path = tmp_path / "run" / "checkpoints" / "step_7" / RUNNING_AVERAGE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged" in resume(RUNNING)
    path.unlink()
    assert "has no running average at step 7" in resume(RUNNING)


def test_the_result_loads_as_a_run_by_card_and_by_name(finished: Path, average: Call, tmp_path: Path) -> None:
    assert average(f"run={finished}", "last_n=2", "name=spear_mean_of_the_test") == (0, [])
    out, cpu = tmp_path / "out", torch.device("cpu")
    result = read_result(out)
    source = open_source(SourceSection(name="mean", checkpoint=str(out)), device=cpu, seed=0)
    features, _ = source.extract(torch.zeros(1, 16000), torch.tensor([16000]))
    assert len(features) == 2
    configs = [get_spear_model_hub().get_model_config(find_run_card(run, "last_checkpoint")) for run in (finished, out)]
    assert configs[0] == configs[1]
    out.rename(tmp_path / "mean")
    cards = tmp_path / "mean" / "checkpoints" / "step_7" / "model"
    assert average("models=[spear_mean_of_the_test]", f"common.assets.extra_paths=[{cards}]") == (0, [])
    (path,) = out.rglob("model.safetensors")
    by_name = load_file(path)
    assert by_name.keys() == result.keys()
    assert all(torch.equal(value, by_name[key]) for key, value in result.items())


def test_models_of_cards_are_averaged_if_their_configurations_agree(
    finished: Path, average: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    text = (finished / "checkpoints" / "model.yaml").read_text()
    for name, step in (("spear_a", 2), ("spear_b", 6), ("spear_c", 6)):
        changed = text.replace("name: checkpoint", f"name: {name}")
        if name == "spear_c":
            assert "  alpha: " in changed
            changed = changed.replace("  alpha: ", "  alpha: 0.25 # ")
        (cards / f"{name}.yaml").write_text(
            f"{changed}\ncheckpoint: {finished / 'checkpoints' / f'step_{step}' / 'model'}\n"
        )
    paths = f"common.assets.extra_paths=[{cards}]"
    assert average("models=[spear_a, spear_b]", paths) == (0, [])
    states = [read_checkpoint(finished, step) for step in (2, 6)]
    (path,) = (tmp_path / "out").rglob("model.safetensors")
    assert_mean(load_file(path), states)
    shutil.rmtree(tmp_path / "out")
    code, lines = average("models=[spear_a, spear_c]", paths)
    assert (code, lines) == (2, ["spear_a and spear_c must have the same configuration, but differ in `alpha`."])
    code, lines = average("models=[spear_a, spear_nowhere]", paths)
    assert (code, len(lines)) == (2, 1)
    assert "'spear_nowhere' is neither" in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["last_n=7"], "must have 7 checkpoints, but has 6 (steps 2, 3, 4, 5, 6, 7)"),
        (["steps=[3, 8]"], "has no checkpoint of step 8"),
        (["mode=running", "last_n=6"], "must have 7 checkpoints"),
        (["mode=running", "steps=[4, 5]"], "no snapshot between the steps"),
        (["steps=[3, 2]"], "must be in ascending order"),
        (["models=[spear_a]"], "Either `run`"),
        (["last_m=3"], "last_m"),
    ],
)
def test_what_a_run_does_not_have_is_told_in_one_line(
    finished: Path, average: Call, options: list[str], message: str
) -> None:
    code, lines = average(f"run={finished}", *options)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_damaged_and_missing_files_are_named_in_one_line(finished: Path, average: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    step = run / "checkpoints" / "step_7"

    def fail(*options: str) -> str:
        code, lines = average(f"run={run}", *options)
        assert (code, len(lines)) == (2, 1)
        assert not (tmp_path / "out" / "checkpoints").exists()
        return lines[0]

    path = step / RUNNING_AVERAGE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    assert "step_7/hook/running_average.safetensors: must be the running average" in fail("mode=running")
    shutil.copy(run / "checkpoints" / "step_6" / RUNNING_AVERAGE_FILE, path)
    assert "it is of step 6" in fail("mode=running")
    path.unlink()
    assert "has no running average at step 7" in fail("mode=running")
    (weights,) = (step / "model").rglob("*.pt")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "step_7 cannot be loaded" in fail("last_n=2")
    state = read_checkpoint(finished, 7)
    key = next(key for key in state if state[key].is_floating_point())
    torch.save(state | {key: state[key] * float("nan")}, weights)
    assert f"step_7 holds infinite or undefined values in '{key}'" in fail("last_n=2")
    shutil.rmtree(run / "checkpoints")
    assert "holds no finished checkpoint" in fail()


def test_another_result_is_not_overwritten(finished: Path, average: Call, tmp_path: Path) -> None:
    assert average(f"run={finished}", "last_n=1") == (0, [])
    before = read_result(tmp_path / "out")
    code, lines = average(f"run={finished}", "last_n=2")
    assert (code, len(lines)) == (2, 1)
    assert "OUT must be a new folder" in lines[0]
    assert all(torch.equal(value, before[key]) for key, value in read_result(tmp_path / "out").items())


def test_a_running_average_is_exact_and_knows_its_snapshots(tmp_path: Path) -> None:
    states = [{"w": torch.randn(3, dtype=torch.float32), "n": torch.tensor([i])} for i in range(1, 31)]
    average = RunningAverage(every_n_steps=3)
    for step_nr, state in enumerate(states, start=1):
        average.update(state, step_nr)
    torch.testing.assert_close(
        average.tensors["w"], torch.stack([s["w"].double() for s in states[2::3]]).mean(0), rtol=1e-14, atol=1e-15
    )
    average.save(tmp_path / "average.safetensors", 31)
    loaded = RunningAverage.load(tmp_path / "average.safetensors", 31)
    assert (loaded.every_n_steps, loaded.num_snapshots) == (3, 10)
    assert torch.equal(loaded.tensors["w"], average.tensors["w"])


def pretrain_arguments(folder: Path, *options: str) -> list[str]:
    corpora = write_test_codes(folder / "codes")
    lists = [f"dataset.config_overrides.{split}={corpora}" for split in ("train", "valid")]
    regime = ["num_steps=7", "checkpoint_every_n_steps=1", "checkpoint_after_n_steps=1", "validate_every_n_steps=null"]
    regime += ["keep_last_n_checkpoints=null", "score_metric=null"]
    overrides = [*lists, *SHORT_RUN, *(f"regime.{line}" for line in regime), "dataset.has_validation=false", *options]
    return [str(folder / "run"), "--config-file", TINY_DEMO, "--config", *overrides]


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the recipe; without `capsys`, which fixtures of a module cannot have."""
    monkeypatch.setattr(sys, "argv", ["recipe", *pretrain_arguments(folder, *options), "--no-rich"])
    try:
        main(SpearPretrainRecipe(), None)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def read_result(folder: Path) -> dict[str, Tensor]:
    """Load the result as fairseq2 loads the last checkpoint of a run."""
    card = find_run_card(folder, "last_checkpoint")
    return dict(get_spear_model_hub().load_model(card, device=torch.device("cpu")).state_dict())


def read_checkpoint(run: Path, step: int) -> dict[str, Tensor]:
    (path,) = (run / "checkpoints" / f"step_{step}" / "model").rglob("*.pt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def assert_mean(result: dict[str, Tensor], states: list[dict[str, Tensor]], *, tolerance: float = 0.0) -> None:
    for key, value in result.items():
        if value.is_floating_point():
            expected = sum(state[key].double() for state in states) / len(states)
            assert isinstance(expected, Tensor)
            torch.testing.assert_close(value, expected.to(value.dtype), rtol=tolerance, atol=tolerance)

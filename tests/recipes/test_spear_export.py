from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from fairseq2.device import CPU
from safetensors.torch import load_file

from recipes.models import find_spear_card
from recipes.spear.average.recipe import SpearAverageRecipe
from recipes.spear.export.recipe import SpearExportRecipe
from spear_plugin.models.spear import convert_spear_state_dict, get_spear_model_hub, released_card
from tests.recipes.common import SMALL_ZIPFORMER, PretrainRunner, call_recipe, find_run_card, save_run
from tests.recipes.test_spear_pretrain import SHORT_RUN
from tests.unit.models.spear.makers import create_batch
from tests.unit.models.spear.test_released import narrow_config

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*options: str) -> tuple[int, list[str]]:
        arguments = [str(tmp_path / "out"), "--config", *options]
        return call_recipe(SpearExportRecipe(), arguments, monkeypatch, capsys)

    return call


def test_an_exported_run_has_the_released_files_and_loads_by_its_path_and_by_its_card(
    export: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", seed=3, config=narrow_config())
    assert export(f"model={run}", "name=spear_exported_by_the_test") == (0, [])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} - {"cache", "config.yaml", "logs"} == {
        "README.md",
        "card.yaml",
        "config.json",
        "model.safetensors",
    }
    tensors = load_file(out / "model.safetensors")
    assert all(key.startswith("model.model.") and "heads" not in key for key in tensors)
    assert json.loads((out / "config.json").read_text())["encoder_dim"] == "32,32"

    hub, batch = get_spear_model_hub(), create_batch([16000, 9000])
    card = find_run_card(run, "last_checkpoint")
    expected = hub.load_model(card, device=CPU).eval().extract_features(batch.waveforms, batch.lengths)
    loaded = hub.load_model(released_card(out), device=CPU).eval()
    assert torch.equal(loaded.extract_features(batch.waveforms, batch.lengths).last, expected.last)

    # By name, for fairseq2 itself, and by path, for our recipes; both without heads.
    for model in ("spear_exported_by_the_test", str(out)):
        mean = tmp_path / "mean" / model[-3:]
        options = [f"models=[{model}]", f"common.assets.extra_paths=[{out / 'card.yaml'}]"]
        assert call_recipe(SpearAverageRecipe(), [str(mean), "--config", *options], monkeypatch, capsys) == (0, [])
        (path,) = mean.rglob("model.safetensors")
        averaged = load_file(path)
        assert averaged.keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, averaged[key]) for key, value in loaded.state_dict().items())


def test_an_exported_model_can_be_exported_again_to_the_same_tensors(export: Call, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=3, config=narrow_config())
    assert export(f"model={run}") == (0, [])
    (tmp_path / "out").rename(tmp_path / "first")
    assert export(f"model={tmp_path / 'first'}") == (0, [])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_heads_are_kept_in_the_training_layout_of_any_size(export: Call, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=3)  # `tiny`, which the released layout cannot express
    assert export(f"model={run}", "layout=training") == (0, [])
    out = tmp_path / "out"
    assert not (out / "config.json").exists()
    checkpoint = torch.load(out / "model.pt", weights_only=True)
    assert list(checkpoint) == ["model"]
    assert {"mask_emb", "codebook_loss_heads.1.linear2b_weight"} <= checkpoint["model"].keys()

    card = find_run_card(run, "last_checkpoint")
    hub = get_spear_model_hub()
    expected = hub.load_model(card, device=CPU).state_dict()
    back = convert_spear_state_dict(checkpoint, hub.get_model_config(card))
    assert back.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(back[key]), value) for key, value in expected.items())
    written = yaml.safe_load((out / "card.yaml").read_text())
    assert (written["checkpoint"], len(written["model_config"]["target_streams"])) == ("model.pt", 2)


def test_the_model_card_tells_what_the_run_was_trained_on(
    export: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = PretrainRunner(tmp_path, SHORT_RUN, monkeypatch, capsys)
    sizes = SMALL_ZIPFORMER.replace("[2, 4, 4]", "[8, 32, 128]")
    assert runner("regime.num_steps=2", f"model.config_overrides.zipformer={{{sizes}}}") == (0, [])
    assert export(f"model={tmp_path / 'run'}", "name=spear_of_the_test") == (0, [])
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "# spear_of_the_test\n" in text
    assert "Checkpoint `step_2` of `recipes.spear.pretrain`" in text
    assert "* `speech`, teacher codes: speech\n* `audio`, teacher codes: speech, audio\n" in text
    assert "released_card(Path(" in text


def test_the_model_card_says_so_if_nothing_is_recorded(export: Call, tmp_path: Path) -> None:
    assert export(f"model={save_run(tmp_path / 'run', seed=3, config=narrow_config())}") == (0, [])
    assert "what that was trained on is not recorded with it" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["model={run}"],
            "no field for `zipformer.subsampling_channels`, which must be [8, 32, 128], but is [4, 8, 16]",
        ),
        (["model=spear_nowhere"], "`model`: must be the name of a card, or the folder of a run"),
        (["model=wav2vec2_base"], "must be a model of the family spear, but 'wav2vec2_base' is of 'wav2vec2'"),
        (["layout=training"], "`model` must be set"),
        (["model={run}", "layout=onnx"], "`layout` must be one of released, training, but is 'onnx'"),
        (["model={empty}"], "holds no finished checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    export: Call, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    run = save_run(tmp_path / "run", seed=3)
    code, lines = export(*(option.format(run=run, empty=tmp_path / "empty") for option in options))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_another_result_is_not_overwritten(export: Call, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=3, config=narrow_config())
    assert export(f"model={run}") == (0, [])
    code, lines = export(f"model={run}", "layout=training")
    assert (code, len(lines)) == (2, 1)
    assert "model.safetensors exists already: OUT must be a new folder" in lines[0]


def test_damaged_weights_are_named_in_one_line(export: Call, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=3, config=narrow_config())
    (weights,) = run.rglob("*.pt")
    weights.write_bytes(weights.read_bytes()[:1000])
    code, lines = export(f"model={run}")
    assert (code, len(lines)) == (2, 1)
    assert f"{run} cannot be loaded" in lines[0]
    assert find_spear_card(str(run), "`model`").name == "last_checkpoint"

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fairseq2.recipe.base import Recipe

from recipes.asr.finetune.recipe import AsrFinetuneRecipe
from recipes.common import main
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.mvq.train.recipe import MvqTrainRecipe
from recipes.probe.recipe import ProbeRecipe
from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from recipes.spidr.pretrain.recipe import SpidrPretrainRecipe
from recipes.tagging.finetune.recipe import TaggingFinetuneRecipe

RECIPES_FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES: dict[str, type[Recipe]] = {
    "asr/finetune": AsrFinetuneRecipe,
    "mvq/encode": MvqEncodeRecipe,
    "mvq/train": MvqTrainRecipe,
    "probe": ProbeRecipe,
    "spear/pretrain": SpearPretrainRecipe,
    "spidr/pretrain": SpidrPretrainRecipe,
    "tagging/finetune": TaggingFinetuneRecipe,
}
PRESETS = sorted(RECIPES_FOLDER.rglob("configs/*.yaml"))


def dump(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["recipe", "--no-rich", "--no-exit-on-error", "--dump-config", *options])
    capsys.readouterr()
    main(recipe, None)
    return capsys.readouterr().out


def test_the_public_presets_are_there() -> None:
    names = {path.relative_to(RECIPES_FOLDER).as_posix() for path in PRESETS}
    spear = "tiny_demo base_speech large_speech base_audio large_audio base_speech_audio large_speech_audio"
    spear += " xlarge_speech_audio base_speech_token_mixing"
    assert {f"spear/pretrain/configs/{name}.yaml" for name in spear.split()} <= names
    assert {f"spidr/pretrain/configs/{name}.yaml" for name in ("tiny_demo", "base", "dinosr_base")} <= names
    asr, tagging = ("tiny_demo", "librispeech_100h", "librispeech_960h"), ("tiny_demo", "audioset_20k", "audioset_2m")
    assert {f"asr/finetune/configs/{name}.yaml" for name in asr} <= names
    assert {f"tagging/finetune/configs/{name}.yaml" for name in tagging} <= names
    assert {f"mvq/train/configs/{name}.yaml" for name in ("demo_speech", "demo_audio", "speech")} <= names


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.relative_to(RECIPES_FOLDER).as_posix())
def test_a_preset_is_a_valid_configuration_and_its_dump_gives_the_same_again(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = RECIPES[preset.parents[1].relative_to(RECIPES_FOLDER).as_posix()]()
    manifest = ("--config", "corpus.manifest=some.tsv") if isinstance(recipe, MvqTrainRecipe) else ()
    dumped = dump(recipe, monkeypatch, capsys, "--config-file", str(preset), *manifest)
    again = tmp_path / "dumped.yaml"
    again.write_text(dumped)
    assert dump(recipe, monkeypatch, capsys, "--config-file", str(again)) == dumped

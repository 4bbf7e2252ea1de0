"""Presets of SpidR: each takes a step at a small width; the learning rate is the authors'."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fairseq2.optim.lr_schedulers import TriStageLR

from recipes.spidr.pretrain.config import SpidrPretrainConfig
from recipes.spidr.pretrain.recipe import SpidrPretrainRecipe
from tests.recipes.common import PretrainRunner
from tests.recipes.test_spidr_pretrain import SHORT_RUN, SPIDR_CORPORA

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "recipes" / "spidr" / "pretrain" / "configs").glob("*.yaml"))
OPTIONS = [
    *SHORT_RUN,
    "dataset.num_parallel=1",
    "regime.validate_every_n_steps=1",
    "regime.checkpoint_every_n_steps=1",
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_takes_a_step(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = PretrainRunner(tmp_path, OPTIONS, monkeypatch, capsys, recipe=SpidrPretrainRecipe, corpora=SPIDR_CORPORA)
    assert runner("regime.num_steps=1", config_file=str(preset)) == (0, [])
    assert runner.read_steps("train")[1]["Loss"] == pytest.approx(math.log(16), rel=0.25)
    assert runner.read_steps("valid")[1]["Target Perplexity"] > 1.0


def test_the_learning_rate_is_the_authors() -> None:
    schedules = json.loads((ROOT / "tests" / "golden" / "spidr" / "results.json").read_text())["schedules"]
    section = SpidrPretrainConfig()
    ratio = section.lr_scheduler.config.stage_ratio  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=section.optimizer.config.lr)  # type: ignore[attr-defined]
    scheduler = TriStageLR(optimizer, section.regime.num_steps or 0, ratio)
    for step, expected in zip(schedules["steps"], schedules["lr"]["tristage"], strict=True):
        scheduler.last_epoch = step
        assert scheduler._compute_lrs() == [pytest.approx(expected, rel=1e-6)]

"""Sharded processes take the steps of those that have whole models, and leave a checkpoint that anybody loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recipes.models import find_spear_card, load_spear_model
from tests.distributed.common import start_pretraining
from tests.recipes.common import write_test_codes

NUM_STEPS = 4


def pretrain(folder: Path, corpora: str, *options: str, num_steps: int = NUM_STEPS) -> None:
    common = (
        "regime.checkpoint_every_n_steps=2",
        "regime.validate_every_n_steps=null",
        "regime.score_metric=null",
        "dataset.has_validation=false",
    )
    assert start_pretraining(folder, corpora, *common, *options, num_processes=2, num_steps=num_steps).wait() == 0


def read_losses(folder: Path) -> list[float]:
    lines = (folder / "metrics" / "train.jsonl").read_text().splitlines()
    return [json.loads(line)["Loss"] for line in lines]


def load_weights(folder: Path) -> dict[str, Tensor]:
    card = find_spear_card(str(folder), "folder")
    return load_spear_model(card, str(folder), device=torch.device("cpu")).state_dict()


@pytest.mark.slow
def test_sharded_processes_train_like_others(tmp_path: Path) -> None:
    corpora = write_test_codes(tmp_path / "codes")
    pretrain(tmp_path / "ddp", corpora)
    for num_steps in (2, NUM_STEPS):  # it goes on after a stop
        pretrain(tmp_path / "fsdp", corpora, "trainer.data_parallelism=fsdp", num_steps=num_steps)
    assert len(list((tmp_path / "fsdp" / "checkpoints" / "step_4" / "model").rglob("sdp_*.pt"))) == 2
    assert read_losses(tmp_path / "fsdp") == pytest.approx(read_losses(tmp_path / "ddp"), rel=1e-5)

    expected, actual = load_weights(tmp_path / "ddp"), load_weights(tmp_path / "fsdp")
    assert actual.keys() == expected.keys()
    distance = sum(float((actual[key].double() - expected[key]).square().sum()) for key in expected) ** 0.5
    norm = sum(float(value.double().square().sum()) for value in expected.values()) ** 0.5
    assert distance < 1e-4 * norm
    assert torch.equal(actual["training_state.batch_count"], expected["training_state.batch_count"])

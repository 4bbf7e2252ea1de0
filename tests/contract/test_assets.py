from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fairseq2.assets import get_asset_store

from spear_plugin.models.spear import get_spear_model_hub
from tests.common import assert_equal

CARDS = sorted((Path(__file__).parents[2] / "spear_plugin" / "cards").rglob("*.yaml"))

RELEASED = {
    "spear_large_speech": "large",
    "spear_base_speech_audio": "base",
    "spear_large_speech_audio": "large",
    "spear_xlarge_speech_audio": "xlarge",
    "spear_base_speech_audio_v2": "base",
    "spear_large_speech_audio_v2": "large",
    "spear_xlarge_speech_audio_v2": "xlarge",
}


@pytest.mark.parametrize(("name", "arch"), RELEASED.items())
def test_a_released_model_has_a_card_with_its_architecture_and_no_heads(name: str, arch: str) -> None:
    hub = get_spear_model_hub()
    config = hub.get_model_config(name)
    assert config.zipformer == hub.get_arch_config(arch).zipformer
    assert config.target_streams == []


def test_every_card_begins_with_our_prefix_and_names_its_licence() -> None:
    documents = [document for path in CARDS for document in yaml.safe_load_all(path.read_text())]
    assert set(RELEASED) < {document["name"] for document in documents}
    for document in documents:
        assert document["name"].startswith(("spear_", "spidr_", "dinosr_"))
        card = get_asset_store().retrieve_card(document["name"])
        assert card.field("license").as_(str)


def test_the_asset_command_lists_our_cards_and_loads_one_by_name_in_a_fresh_process(tmp_path: Path) -> None:
    """A card in the user's folder is all that a checkpoint needs to be loaded by name."""
    make_and_list = f"""
import torch
from fairseq2 import init_fairseq2
init_fairseq2()
from fairseq2.assets import get_asset_store
from fairseq2.models import load_model
from spear_plugin.models.spear import get_spear_model_hub
hub = get_spear_model_hub()
config = hub.get_arch_config("tiny")
torch.save(hub.create_new_model(config).state_dict(), {str(tmp_path / "model.pt")!r})
model = load_model("spear_of_mine")
assert get_asset_store().maybe_retrieve_card("spear_large_speech") is not None
torch.save(model.state_dict(), {str(tmp_path / "loaded.pt")!r})
"""
    (tmp_path / "card.yaml").write_text(
        f"name: spear_of_mine\nmodel_family: spear\nmodel_arch: tiny\ncheckpoint: {tmp_path / 'model.pt'}\n"
    )
    environment = os.environ | {"FAIRSEQ2_USER_ASSET_DIR": str(tmp_path), "FAIRSEQ2_EXTENSION_TRACE": "1"}
    subprocess.run([sys.executable, "-c", make_and_list], check=True, env=environment)
    saved, loaded = (read_weights(tmp_path / name) for name in ("model.pt", "loaded.pt"))
    assert saved.keys() == loaded.keys()
    for name, tensor in saved.items():
        assert_equal(tensor, loaded[name])
    output = subprocess.run(
        [sys.executable, "-m", "fairseq2.assets", "list", "--kind", "model"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    ).stdout
    assert all(f"{name}" in output for name in ("spear_of_mine", *RELEASED))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights

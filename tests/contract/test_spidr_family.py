"""What users of the family rely on: names, sizes, and that a checkpoint on disk comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.nn.utils.module import reset_non_persistent_buffers, reset_parameters, to_empty
from fairseq2.utils.validation import StandardObjectValidator
from safetensors.torch import save_file

from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrConfig, create_spidr_model, get_spidr_model_hub
from tests.common import assert_equal
from tests.unit.models.spidr.makers import create_batch, create_small_model, small_config


def test_family_has_its_public_names() -> None:
    hub = get_spidr_model_hub()
    assert SPIDR_FAMILY == "spidr"
    assert hub.get_archs() == {"tiny", "base", "dinosr_base"}
    assert hub.get_arch_config("base") == SpidrConfig()
    for arch in hub.get_archs():
        StandardObjectValidator().validate(hub.get_arch_config(arch))


def test_dinosr_differs_from_spidr_in_what_its_paper_says() -> None:
    config = get_spidr_model_hub().get_arch_config("dinosr_base")
    assert (config.kind, config.ema.curve, config.encoder.layer_drop) == ("dinosr", "linear", 0.05)
    config.kind, config.ema.curve, config.encoder.layer_drop = "spidr", "exponential", 0.0
    assert config == SpidrConfig()


@pytest.mark.parametrize(("name", "arch"), [("spidr_base", "base"), ("dinosr_base_reproduced", "dinosr_base")])
def test_a_released_model_has_a_card_with_its_architecture(name: str, arch: str) -> None:
    hub = get_spidr_model_hub()
    assert hub.get_model_config(name) == hub.get_arch_config(arch)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_saved_model_loads_as_it_was(tmp_path: Path, suffix: str) -> None:
    model = create_small_model()
    model.update_ema(2)
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    loaded = get_spidr_model_hub().load_custom_model(path, small_config(), progress=False)
    for name, value in model.state_dict().items():
        assert_equal(loaded.state_dict()[name], value)
    assert not any(p.requires_grad for p in loaded.teacher.parameters())


def test_model_created_without_memory_initializes_like_any_other() -> None:
    with torch.device("meta"):
        model = create_spidr_model(small_config())
    to_empty(model, torch.device("cpu"))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(99)
    torch.manual_seed(0)
    reset_parameters(model)
    reset_non_persistent_buffers(model)
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        assert not (value == 99).any(), name
    assert_equal(model.teacher.pos_conv_embed.convs[0].weight, model.student.pos_conv_embed.convs[0].weight)  # type: ignore[arg-type]
    assert create_batch([16000, 9000]).loss_of(model).loss.isfinite()


def test_tiny_learns_on_one_batch() -> None:
    torch.manual_seed(0)
    hub = get_spidr_model_hub()
    model = hub.create_new_model(hub.get_arch_config("tiny"))
    batch = create_batch([8000, 8000])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = [batch.train(model, optimizer, step) for step in range(1, 13)]
    assert losses[0] == pytest.approx(torch.tensor(64.0).log().item(), abs=0.5)
    assert losses[-1] < 0.8 * losses[0]

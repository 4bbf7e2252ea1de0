"""What users of the families rely on: names, keys, and that a checkpoint on disk comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetCard
from fairseq2.models.hub import load_model
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import ValueConverter
from safetensors.torch import save_file

from spear_plugin.models.downstream import (
    CTC_FAMILY,
    TAGGING_FAMILY,
    CtcConfig,
    CtcOutput,
    TaggingConfig,
    create_ctc_model,
    create_tagging_model,
    get_ctc_model_hub,
    get_tagging_model_hub,
)
from tests.unit.models.downstream.makers import ENCODERS, create_waveforms


def test_families_have_their_public_names() -> None:
    assert (CTC_FAMILY, TAGGING_FAMILY) == ("speech_ctc", "audio_tagging")
    assert get_ctc_model_hub().get_arch_config("base") == CtcConfig()
    assert get_tagging_model_hub().get_arch_config("base") == TaggingConfig()


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_a_saved_model_loads_by_a_card_that_holds_its_encoders_configuration(family: str, tmp_path: Path) -> None:
    converter = get_dependency_resolver().resolve(ValueConverter)  # type: ignore[type-abstract]
    waveforms, lengths = create_waveforms(9_000)
    torch.manual_seed(0)
    ctc_config = CtcConfig(encoder=ENCODERS[family], layers="weighted", vocabulary_size=5)
    tagging_config = TaggingConfig(encoder=ENCODERS[family], labels=["b", "a"])
    for name, model, config in (
        (CTC_FAMILY, create_ctc_model(ctc_config).eval(), ctc_config),
        (TAGGING_FAMILY, create_tagging_model(tagging_config).eval(), tagging_config),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path)
        fields = {"model_family": name, "model_config": converter.unstructure(config), "checkpoint": str(path)}
        loaded = load_model(AssetCard("test", fields)).eval()
        assert loaded.config == config
        expected, output = (_scores_of(m(waveforms, lengths)) for m in (model, loaded))
        assert torch.equal(output, expected)


def _scores_of(output: CtcOutput | torch.Tensor) -> torch.Tensor:
    return output.log_probs if isinstance(output, CtcOutput) else output


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_the_encoder_keeps_its_own_keys_below_encoder_model(family: str) -> None:
    model = create_ctc_model(CtcConfig(encoder=ENCODERS[family], vocabulary_size=5))
    keys = set(model.state_dict())
    inner = {f"encoder.model.{key}" for key in model.encoder.model.state_dict()}  # type: ignore[union-attr]
    assert keys == inner | {"projection.weight", "projection.bias"}

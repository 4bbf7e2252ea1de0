from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetCard
from torch import Tensor

from spear_plugin.models.spidr import (
    SpidrConfig,
    SpidrModel,
    convert_spidr_state_dict,
    export_spidr_state_dict,
    get_spidr_model_hub,
)
from tests.common import assert_equal
from tests.unit.models.spidr.makers import create_batch, create_small_model, small_config


def assert_same_state(actual: dict[str, object], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        tensor = actual[name]
        assert isinstance(tensor, Tensor)
        assert_equal(tensor, value)


def test_a_checkpoint_of_our_own_passes_through() -> None:
    state_dict = create_small_model().state_dict()
    assert_same_state(convert_spidr_state_dict(dict(state_dict), small_config()), state_dict)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_layout_comes_back_as_it_went(prefix: str) -> None:
    state_dict = create_small_model().state_dict()
    exported = {f"{prefix}{name}": value for name, value in export_spidr_state_dict(state_dict).items()}
    assert f"{prefix}heads.1.0.weight" in exported
    assert f"{prefix}codebooks.1.codebook" in exported
    assert_same_state(convert_spidr_state_dict({"model": exported, "step": 3}, small_config()), state_dict)


def test_more_than_ten_heads_keep_their_order() -> None:
    exported: dict[str, object] = {f"heads.{i}.0.bias": torch.tensor([float(i)]) for i in range(12)}
    converted = convert_spidr_state_dict(exported, small_config())
    assert_same_state(converted, {"heads.bias": torch.arange(12.0)[:, None]})


def test_a_file_in_the_authors_layout_loads_by_its_card(tmp_path: Path) -> None:
    model = create_small_model().eval()
    path = tmp_path / "spidr.pt"
    torch.save({"model": export_spidr_state_dict(model.state_dict()), "epoch": torch.ones(1)}, path)
    parts = {name: vars(part) for name, part in vars(small_config()).items() if hasattr(part, "__dict__")}
    card = AssetCard(
        "spidr_test",
        {
            "model_family": "spidr",
            "model_arch": "base",
            "model_config": parts | {"freeze_step": 3},
            "checkpoint": str(path),
        },
    )
    loaded = get_spidr_model_hub().load_model(card, progress=False).eval()
    assert loaded.config == small_config()
    assert_same_state(dict(loaded.state_dict()), model.state_dict())
    batch = create_batch([16000, 9000])
    assert_equal(batch.loss_of(loaded).loss, batch.loss_of(model).loss)


def rename_to_fairseq(state_dict: dict[str, Tensor]) -> dict[str, object]:
    """Write a model as the original DinoSR does, whose names are those of fairseq's wav2vec 2.0."""
    renamed: dict[str, object] = {}
    teacher: dict[str, object] = {}
    names = {
        "mask_embedding": "mask_emb",
        "feature_projection.layer_norm": "layer_norm",
        "feature_projection.projection": "post_extract_proj",
        "pos_conv_embed.convs": "pos_conv",
        "attention.proj": "self_attn.out_proj",
        "feed_forward.intermediate_dense": "fc1",
        "feed_forward.output_dense": "fc2",
    }
    for name, value in export_spidr_state_dict(state_dict).items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        name = re.sub(r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm", name)
        name = re.sub(r"(pos_conv\.\d+)", r"\1.0", name)
        name = re.sub(r"(conv_layers\.\d+)\.conv", r"\1.0", name)
        name = re.sub(r"(conv_layers\.\d+)\.self_attn_layer_norm", r"\1.2.1", name)
        name = re.sub(r"heads\.(\d+)\.0", r"heads.\1", name)
        name = re.sub(r"codebooks\.(\d+)\.codebook", r"_codebook\1", name)
        name = re.sub(r"codebooks\.(\d+)\.counts", r"_codebook_cnts\1", name)
        target = teacher if name.startswith("teacher.") else renamed
        name = name.replace("student.", "encoder.").removeprefix("teacher.")
        if "qkv" in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                target[name.replace("attention.qkv", f"self_attn.{part}_proj")] = piece
        elif name != "current_step":
            target[name] = value
    return renamed | {"_ema": teacher}


def dinosr_config() -> SpidrConfig:
    config = small_config("dinosr")
    config.encoder.qkv_bias = True
    return config


def create_dinosr() -> SpidrModel:
    model = create_small_model(dinosr_config())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


def test_a_checkpoint_of_the_original_dinosr_is_renamed() -> None:
    state_dict = create_dinosr().state_dict()
    theirs = rename_to_fairseq(state_dict)
    assert "encoder.layers.0.self_attn.q_proj.bias" in theirs
    theirs |= {"_pre_encoder_cnn": {"0.0.weight": torch.ones(1)}}
    assert_same_state(convert_spidr_state_dict({"model": theirs}, dinosr_config()), state_dict)


def test_an_original_dinosr_without_a_teacher_starts_one_from_its_student() -> None:
    state_dict = create_dinosr().state_dict()
    theirs = rename_to_fairseq(state_dict)
    del theirs["_ema"]
    expected = {name: state_dict[name.replace("teacher.", "student.")] for name in state_dict}
    assert_same_state(convert_spidr_state_dict(theirs, dinosr_config()), expected)

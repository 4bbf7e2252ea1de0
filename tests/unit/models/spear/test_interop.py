from __future__ import annotations

import pytest
import torch

from spear_plugin.models.spear import (
    SpearConfig,
    TargetStreamConfig,
    convert_spear_state_dict,
    convert_to_released_state_dict,
    convert_to_training_state_dict,
    get_spear_model_hub,
)
from tests.unit.models.spear.makers import create_small_model, small_config


def convert(keys: list[str], config: SpearConfig) -> dict[str, object]:
    """Return which of our keys gets the value of which of theirs."""
    return without_training_state(convert_spear_state_dict({key: key for key in keys}, config))


def without_training_state(state_dict: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in state_dict.items() if not key.startswith("training_state.")}


def test_native_checkpoint_passes_unchanged() -> None:
    state_dict: dict[str, object] = dict(create_small_model().state_dict())
    converted = convert_spear_state_dict(state_dict, small_config())
    assert list(converted) == list(state_dict)
    assert all(converted[key] is value for key, value in state_dict.items())


def test_released_keys_lose_their_prefix_and_the_unused_scale_of_layers() -> None:
    keys = [
        "model.model.mask_emb",
        "model.model.encoder_embed.conv.0.weight",
        "model.model.encoder.encoders.0.layers.0.bypass_scale",
        "model.model.encoder.encoders.0.layers.0.bypass.bypass_scale",
        "model.model.encoder.encoders.1.encoder.layers.0.bypass_scale",
        "model.model.encoder.encoders.1.out_combiner.bypass_scale",
        "model.model.encoder.downsample_output.bias",
    ]
    assert list(convert(keys, SpearConfig(target_streams=[]))) == [
        "mask_emb",
        "encoder_embed.conv.0.weight",
        "encoder.encoders.0.layers.0.bypass.bypass_scale",
        "encoder.encoders.1.out_combiner.bypass_scale",
    ]


def test_downsampling_of_the_output_is_kept_at_25_hz() -> None:
    config = small_config(output_downsampling_factor=2)
    assert list(convert(["encoder.downsample_output.bias"], config)) == ["encoder.downsample_output.bias"]


def test_heads_of_training_checkpoints_become_those_of_the_streams() -> None:
    keys = [
        f"codebook_loss_heads.{index}.{name}"
        for index in (0, 1)
        for name in ("linear1.weight", "codebook_embedding.weight", "linear2_weight", "linear2b_weight", "linear2_bias")
    ]
    converted = convert([*keys, "audio_tagging_proj.1.weight", "mask_emb"], SpearConfig())
    assert converted == {
        "heads.speech.weight": "codebook_loss_heads.0.linear2b_weight",
        "heads.speech.bias": "codebook_loss_heads.0.linear2_bias",
        "heads.audio.weight": "codebook_loss_heads.1.linear2b_weight",
        "heads.audio.bias": "codebook_loss_heads.1.linear2_bias",
        "mask_emb": "mask_emb",
    }


def test_the_only_head_of_a_training_checkpoint_becomes_that_of_the_first_stream() -> None:
    config = SpearConfig(target_streams=[TargetStreamConfig(name="music")])
    keys = ["codebook_loss_net.linear2b_weight", "codebook_loss_net.linear2_bias", "codebook_loss_net.linear1.bias"]
    assert convert(keys, config) == {
        "heads.music.weight": "codebook_loss_net.linear2b_weight",
        "heads.music.bias": "codebook_loss_net.linear2_bias",
    }


def test_training_checkpoint_is_unwrapped() -> None:
    weight = torch.zeros(1)
    state_dict: dict[str, object] = {"model": {"module.mask_emb": weight}, "optimizer": {}}
    assert without_training_state(convert_spear_state_dict(state_dict, SpearConfig())) == {"mask_emb": weight}


def test_a_checkpoint_of_the_authors_gets_the_training_state_of_a_new_model() -> None:
    converted = convert_spear_state_dict({"mask_emb": torch.zeros(1)}, small_config())
    new = create_small_model().training_state.state_dict(prefix="training_state.")
    assert converted.keys() - {"mask_emb"} == new.keys()
    assert all(torch.equal(value, torch.as_tensor(converted[key])) for key, value in new.items())


def test_heads_without_a_stream_are_dropped_from_any_checkpoint() -> None:
    config = SpearConfig(target_streams=[])
    assert convert(["heads.speech.weight", "codebook_loss_net.linear2_bias", "mask_emb"], config) == {
        "mask_emb": "mask_emb"
    }


@pytest.mark.parametrize("num_streams", [1, 2])
def test_what_is_written_in_their_training_layout_comes_back_bit_by_bit(num_streams: int) -> None:
    hub = get_spear_model_hub()
    config = hub.get_arch_config("tiny")
    del config.target_streams[num_streams:]
    state_dict = without_training_state(dict(hub.create_new_model(config).state_dict()))
    theirs = convert_to_training_state_dict({k: torch.as_tensor(v) for k, v in state_dict.items()}, config)
    prefixes = {key.rpartition(".")[0] for key in theirs if key.startswith("codebook")}
    assert (
        prefixes
        == {
            1: {"codebook_loss_net"},
            2: {"codebook_loss_heads.0", "codebook_loss_heads.1"},
        }[num_streams]
    )
    back = without_training_state(convert_spear_state_dict({"model": theirs}, config))
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(torch.as_tensor(back[key]), torch.as_tensor(value)) for key, value in state_dict.items())
    again = convert_to_training_state_dict({k: torch.as_tensor(v) for k, v in back.items()}, config)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


def test_what_is_written_in_the_released_layout_comes_back_bit_by_bit_without_heads() -> None:
    hub = get_spear_model_hub()
    config = hub.get_arch_config("tiny")
    state_dict = hub.create_new_model(config).state_dict()
    theirs = convert_to_released_state_dict(state_dict)
    config.target_streams = []
    back = without_training_state(convert_spear_state_dict(dict(theirs), config))
    encoder = {k: v for k, v in state_dict.items() if not k.startswith(("heads.", "training_state."))}
    assert back.keys() == encoder.keys()
    assert all(torch.equal(torch.as_tensor(back[key]), value) for key, value in encoder.items())


def test_the_released_layout_is_float32_with_the_unused_scale_of_each_layer() -> None:
    model = create_small_model().to(torch.bfloat16)
    theirs = convert_to_released_state_dict(model.state_dict())
    assert {value.dtype for value in theirs.values()} == {torch.float32}
    unused = {
        key: value for key, value in theirs.items() if key.endswith(tuple(f"layers.{i}.bypass_scale" for i in (0, 1)))
    }
    assert sorted(unused) == [
        "model.model.encoder.encoders.0.layers.0.bypass_scale",
        "model.model.encoder.encoders.1.encoder.layers.0.bypass_scale",
        "model.model.encoder.encoders.1.encoder.layers.1.bypass_scale",
    ]
    assert all(torch.equal(value, torch.full((32,), 0.5)) for value in unused.values())

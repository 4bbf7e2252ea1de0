"""Reads and writes the authors' two checkpoint layouts; a checkpoint of this plugin passes the reader too.

* Released weights: all keys below ``model.model.``, no heads.
* Training checkpoints: a ``model`` entry without prefix, with heads ``codebook_loss_net`` (one stream) or
  ``codebook_loss_heads.N`` (stream N).

What is written comes back bit by bit when it is read. Neither layout has a place for ``training_state``, and in both
the scales of norms have no axis, where ours have one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, cast

import torch
from fairseq2.models.utils.checkpoint import convert_state_dict
from torch import Tensor

from spear_plugin.models.spear.config import SpearConfig
from spear_plugin.models.zipformer import num_whiteners
from spear_plugin.nn.training_state import TrainingState

_UNUSED: Final = re.compile(
    r"encoder\.encoders\.\d+\.(encoder\.)?layers\.\d+\.bypass_scale"  # bypass and bypass_mid have their own
    r"|codebook_loss_(net|heads\.\d+)\.(linear1\.(weight|bias)|codebook_embedding\.weight|linear2_weight)"
    r"|audio_tagging_proj\..*"
)
"""Parameters that the authors' code creates but never uses in SPEAR."""

_LAYER_BYPASS: Final = re.compile(r"(encoder\.encoders\.\d+\.(?:encoder\.)?layers\.\d+)\.bypass\.bypass_scale")
_INITIAL_BYPASS_SCALE: Final = 0.5
_SCALE: Final = ".log_scale"
_HEAD_KEYS: Final = {"weight": "linear2b_weight", "bias": "linear2_bias"}


def convert_spear_state_dict(state_dict: dict[str, object], config: SpearConfig) -> dict[str, object]:
    """Rename the authors' keys to ours, and drop what they or the ``config`` have no use for.

    Heads are dropped if the configuration has no stream for them, and the output's downsampling if its rate is 50 Hz,
    so that a model for downstream tasks, with ``target_streams: []``, loads any checkpoint.
    """
    if "model" in state_dict:
        state_dict = cast("dict[str, object]", state_dict["model"])
    state_dict = convert_state_dict(state_dict, {r"^(module\.)?(model\.model\.)?": ""})
    state_dict = convert_state_dict(state_dict, _create_head_map(config))
    state_dict = {key: _with_axis(value) for key, value in state_dict.items() if _is_used(key, config)}
    if _is_later_shard(state_dict):
        # What is not sharded is in each file. fairseq2 strings the files' tensors together; it finds none here.
        return {key: value for key, value in state_dict.items() if not key.startswith("training_state.")}
    if "training_state.batch_count" not in state_dict:
        # The authors do not save how far training was.
        state_dict |= TrainingState(num_whiteners(config.zipformer)).state_dict(prefix="training_state.")
    return state_dict


def convert_to_released_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors as the authors release theirs: float32, below ``model.model.``, without heads.

    With the unused parameter of each layer, at its initial value, so that a strict reader accepts them.
    """
    return {f"model.model.{key}": value for key, value in _to_their_encoder(state_dict).items()}


def convert_to_training_state_dict(state_dict: Mapping[str, Tensor], config: SpearConfig) -> dict[str, Tensor]:
    """Return a model's tensors, float32, as they stand below ``model`` in the authors' training checkpoints.

    With its heads, but without the parameters of theirs that they never use: icefall's reader asks for none of them.
    """
    converted = _to_their_encoder(state_dict)
    for index, stream in enumerate(config.target_streams):
        prefix = "codebook_loss_net" if len(config.target_streams) == 1 else f"codebook_loss_heads.{index}"
        for own, their in _HEAD_KEYS.items():
            converted[f"{prefix}.{their}"] = state_dict[f"heads.{stream.name}.{own}"].float()
    return converted


def _to_their_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out heads and training state, and add the unused parameter of each layer."""
    converted = {}
    for key, value in state_dict.items():
        if key.startswith(("heads.", "training_state.")):
            continue
        converted[key] = value.float().squeeze() if key.endswith(_SCALE) else value.float()
        if (match := _LAYER_BYPASS.fullmatch(key)) is not None:
            converted[f"{match[1]}.bypass_scale"] = torch.full_like(converted[key], _INITIAL_BYPASS_SCALE)
    return converted


def _with_axis(value: object) -> object:
    return value[None] if isinstance(value, Tensor) and value.dim() == 0 else value


def _is_later_shard(state_dict: Mapping[str, object]) -> bool:
    """Tell whether this is what FSDP gave to another process than the first, which has all scales of norms."""
    return any(
        isinstance(value, Tensor) and value.numel() == 0 for key, value in state_dict.items() if key.endswith(_SCALE)
    )


def _create_head_map(config: SpearConfig) -> dict[str, str]:
    key_map = {}
    for index, stream in enumerate(config.target_streams):
        theirs = rf"^codebook_loss_heads\.{index}\."
        if index == 0:
            theirs = rf"^codebook_loss_(?:net|heads\.{index})\."
        for own, their in _HEAD_KEYS.items():
            key_map[rf"{theirs}{their}$"] = f"heads.{stream.name}.{own}"
    return key_map


def _is_used(key: str, config: SpearConfig) -> bool:
    if _UNUSED.fullmatch(key) is not None:
        return False
    if key.startswith("encoder.downsample_output."):
        return config.zipformer.output_downsampling_factor > 1
    if key.startswith("codebook_loss_"):
        return False
    if key.startswith("heads."):
        return key.split(".")[1] in {stream.name for stream in config.target_streams}
    return True

"""Reads and writes the layouts of other people's checkpoints; a checkpoint of this plugin passes through unchanged.

* SpidR's and DinoSR's by the authors of SpidR: names like ours, but one entry for each head and codebook.
* The original DinoSR's, a model of fairseq: separate queries, keys and values, the teacher in an entry of its own.
"""

from __future__ import annotations

import re
from typing import Final, cast

import torch
from fairseq2.models.utils.checkpoint import convert_state_dict
from torch import Tensor

from spear_plugin.models.spidr.config import SpidrConfig

_STACKS: Final = {
    r"heads\.(\d+)\.(?:0\.)?weight": "heads.weight",
    r"heads\.(\d+)\.(?:0\.)?bias": "heads.bias",
    r"codebooks\.(\d+)\.codebook|_codebook(\d+)": "codebooks.sums",
    r"codebooks\.(\d+)\.counts|_codebook_cnts(\d+)": "codebooks.counts",
}
"""By the key of ours, the keys of its entries, with their numbers."""

_EXPORTED_STACKS: Final = {
    "heads.weight": "heads.{}.0.weight",
    "heads.bias": "heads.{}.0.bias",
    "codebooks.sums": "codebooks.{}.codebook",
    "codebooks.counts": "codebooks.{}.counts",
}

_FAIRSEQ_KEYS: Final = {
    r"^mask_emb$": "mask_embedding",
    r"^feature_extractor\.conv_layers\.(\d+)\.0\.": r"feature_extractor.conv_layers.\1.conv.",
    r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?": r"feature_extractor.conv_layers.\1.layer_norm.",
    r"^layer_norm\.": "feature_projection.layer_norm.",
    r"^post_extract_proj\.": "feature_projection.projection.",
    r"^(student|teacher)\.pos_conv\.(\d+)\.0\.": r"\1.pos_conv_embed.convs.\2.",
    r"^(student|teacher)\.layers\.(\d+)\.self_attn\.out_proj\.": r"\1.layers.\2.attention.proj.",
    r"^(student|teacher)\.layers\.(\d+)\.self_attn\.qkv\.": r"\1.layers.\2.attention.qkv.",
    r"^(student|teacher)\.layers\.(\d+)\.self_attn_layer_norm\.": r"\1.layers.\2.layer_norm.",
    r"^(student|teacher)\.layers\.(\d+)\.fc1\.": r"\1.layers.\2.feed_forward.intermediate_dense.",
    r"^(student|teacher)\.layers\.(\d+)\.fc2\.": r"\1.layers.\2.feed_forward.output_dense.",
}


def convert_spidr_state_dict(state_dict: dict[str, object], config: SpidrConfig) -> dict[str, object]:
    """Rename other people's keys to ours and stack heads and codebooks.

    A model of fairseq that comes without its teacher gets a copy of the student instead.
    """
    del config
    if "model" in state_dict:
        state_dict = cast("dict[str, object]", state_dict["model"])
    state_dict = convert_state_dict(state_dict, {r"^module\.": ""})
    if "mask_emb" in state_dict:
        state_dict = _convert_fairseq(state_dict)
    for pattern, key in _STACKS.items():
        state_dict = _stack(state_dict, re.compile(pattern), key)
    return state_dict


def export_spidr_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a model in the layout of SpidR's authors.

    Their programs read a file that was written with ``torch.save({"model": exported}, path)``.
    """
    exported = {}
    for key, value in state_dict.items():
        name = _EXPORTED_STACKS.get(key)
        if name is None:
            exported[key] = value
        else:
            exported |= {name.format(index): entry.clone() for index, entry in enumerate(value)}
    return exported


def _stack(state_dict: dict[str, object], pattern: re.Pattern[str], key: str) -> dict[str, object]:
    """Replace the entries of a pattern by one, in the order of their numbers."""
    entries: dict[int, Tensor] = {}
    rest: dict[str, object] = {}
    for name, value in state_dict.items():
        if match := pattern.fullmatch(name):
            entries[int(next(filter(None, match.groups())))] = cast("Tensor", value)
        else:
            rest[name] = value
    if entries:
        rest[key] = torch.stack([entries[index] for index in sorted(entries)])
    return rest


def _convert_fairseq(state_dict: dict[str, object]) -> dict[str, object]:
    teacher = cast("dict[str, object]", state_dict.get("_ema", {}))
    converted = {key: value for key, value in state_dict.items() if key != "_ema" and "_pre_encoder" not in key}
    converted = convert_state_dict(converted, {r"^encoder\.": "student."})
    # What the teacher shares with the student, such as its positional convolutions, it may come without.
    student = {key.removeprefix("student."): value for key, value in converted.items() if key.startswith("student.")}
    converted |= {f"teacher.{key}": value for key, value in (student | teacher).items()}
    converted = convert_state_dict(_fuse_attention(converted), _FAIRSEQ_KEYS)
    converted["current_step"] = torch.zeros(1, dtype=torch.int64)
    return converted


def _fuse_attention(state_dict: dict[str, object]) -> dict[str, object]:
    """Concatenate queries, keys and values."""
    fused = {}
    for key, value in state_dict.items():
        if re.search(r"\.self_attn\.[kv]_proj\.", key):
            continue
        if ".self_attn.q_proj." in key:
            parts = [state_dict[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            key, value = key.replace(".q_proj.", ".qkv."), torch.cat(cast("list[Tensor]", parts))
        fused[key] = value
    return fused

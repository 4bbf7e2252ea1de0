"""wav2vec 2.0, HuBERT and WavLM from the weights of torchaudio's bundles (``torchaudio.pipelines``), a local file.

Letters: N batch, S samples, T frames, D width.

What model a file holds follows from the shapes in it: all bundles, pre-trained or fine-tuned to CTC, are built by a few
rules (a test compares them). Layers count as in the adapter of transformers: 0 is the input of the first block, ``n``
the output of the n-th, the last one behind the final layer norm where there is one. Utterances are standardised for
the models that the bundles normalise, each by itself (the bundles do it over the whole batch).

WavLM takes no lengths in torchaudio, and group norm over time cannot ignore padding: these get the utterances one by
one. For WavLM the adapter of transformers is the faster one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import Identity, Module
from torchaudio.models import wav2vec2_model, wavlm_model
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, count_conv_frames, embed_one_by_one, standardize
from spear_plugin.teachers.weights import load_weights, name_weights, read_state_dict

SAMPLE_RATE: Final = 16_000
_STRIDES: Final = (5, 2, 2, 2, 2, 2, 2)
_WAVLM_MAX_DISTANCE: Final = 800
_DROPOUTS: Final = {
    "encoder_projection_dropout": 0.0,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_drop": 0.0,
}
_CONV: Final = "feature_extractor.conv_layers"
_LAYER: Final = "encoder.transformer.layers"
_REL_EMBEDDING: Final = f"{_LAYER}.0.attention.rel_attn_embed.weight"


def load_torchaudio_teacher(path: Path, layer: int | None = None) -> TorchaudioTeacher:
    """Build the teacher from the file of a bundle, such as ``hubert_fairseq_large_ll60k.pth``.

    :param layer: Which hidden representation; the last one by default.

    :raises TeacherError: If the file is missing, damaged or of another kind, or has no such layer.
    """
    content = read_state_dict(path, "torchaudio")
    state_dict = {key: value for key, value in content.items() if not key.startswith("aux.")}
    try:
        params = infer_parameters(state_dict)
    except (KeyError, AttributeError, IndexError) as ex:
        raise TeacherError(
            f"{path}: must hold the weights of a wav2vec 2.0, HuBERT or WavLM bundle of torchaudio, but lacks {ex}."
        ) from ex

    num_layers = params["encoder_num_layers"]
    if layer is not None and not 0 <= layer <= num_layers:
        raise TeacherError(f"{path}: `layer` must be from 0 to {num_layers}, but is {layer}.")

    is_wavlm = _REL_EMBEDDING in state_dict
    model = (wavlm_model if is_wavlm else wav2vec2_model)(**params, **_DROPOUTS, aux_num_out=None)
    load_weights(model, state_dict, path, "torchaudio")
    kind = "torchaudio_wavlm" if is_wavlm else "torchaudio_wav2vec2"

    return TorchaudioTeacher(
        name_weights(path, {}, default=kind),
        num_layers if layer is None else layer,
        model,
        normalize=params["extractor_mode"] == "layer_norm",
        takes_lengths=not is_wavlm,
    )


@final
class TorchaudioTeacher(Teacher):
    """A hidden representation of a model of torchaudio."""

    def __init__(self, weights: str, layer: int, model: Module, *, normalize: bool, takes_lengths: bool) -> None:
        """Cut the model behind the layer.

        :param normalize: Whether the model wants standardised utterances; these models have no norm over time.
        :param takes_lengths: Whether the model can mask padding.
        """
        encoder: Any = model.encoder
        transformer = encoder.transformer
        super().__init__(
            weights,
            layer,
            dim=transformer.pos_conv_embed.embed_dim,
            frame_rate_hz=SAMPLE_RATE / math.prod(_STRIDES),
            sample_rate=SAMPLE_RATE,
        )
        self.model = model
        self.kernel_sizes = [conv.conv.kernel_size[0] for conv in model.feature_extractor.conv_layers]  # type: ignore[union-attr]
        self.normalize = normalize
        self.ignores_padding = normalize and takes_lengths

        # The encoder ends at the chosen block; a norm behind the blocks (`layer_norm_first` means before them) belongs
        # to the last one only.
        if layer < len(transformer.layers):
            del transformer.layers[layer:]
            if not transformer.layer_norm_first:
                transformer.layer_norm = Identity()

    @override
    def num_frames(self, num_samples: int) -> int:
        return count_conv_frames(num_samples, zip(self.kernel_sizes, _STRIDES, strict=True))

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        if self.normalize:
            waveforms = standardize(waveforms, lengths)

        if self.ignores_padding:
            return self._run_model(waveforms, torch.tensor(lengths, device=waveforms.device))

        lengths = [n if self.num_frames(n) > 0 else 0 for n in lengths]

        return embed_one_by_one(self._run_model, waveforms, lengths, self.dim)

    def _run_model(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, S) -> (N, T, D)."""
        frames: Tensor
        frames, _ = self.model(waveforms, lengths)

        return frames


def infer_parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of a bundle's model, as torchaudio's factories name them, from its weights.

    :raises KeyError: If a weight that all models have is missing.
    """
    dim = state_dict["encoder.feature_projection.projection.weight"].size(0)
    convs = [state_dict[f"{_CONV}.{i}.conv.weight"] for i in range(len(_STRIDES))]
    # All models with norms over the channels, not over time, have the layer norm first in their blocks.
    is_layer_norm = f"{_CONV}.1.layer_norm.weight" in state_dict
    pos_conv = _find_pos_conv(state_dict)
    params: dict[str, Any] = {
        "extractor_mode": "layer_norm" if is_layer_norm else "group_norm",
        "extractor_conv_layer_config": [(c.size(0), c.size(2), s) for c, s in zip(convs, _STRIDES, strict=True)],
        "extractor_conv_bias": f"{_CONV}.0.conv.bias" in state_dict,
        "encoder_embed_dim": dim,
        "encoder_pos_conv_kernel": pos_conv.size(2),
        "encoder_pos_conv_groups": dim // pos_conv.size(1),
        "encoder_num_layers": len({key.split(".")[3] for key in state_dict if key.startswith(f"{_LAYER}.")}),
        "encoder_num_heads": 16 if dim >= 1024 else dim // 64,
        "encoder_ff_interm_features": state_dict[f"{_LAYER}.0.feed_forward.intermediate_dense.weight"].size(0),
        "encoder_layer_norm_first": is_layer_norm,
    }
    if _REL_EMBEDDING in state_dict:
        num_buckets, params["encoder_num_heads"] = state_dict[_REL_EMBEDDING].shape
        params |= {"encoder_num_buckets": num_buckets, "encoder_max_distance": _WAVLM_MAX_DISTANCE}

    return params


def _find_pos_conv(state_dict: Mapping[str, Tensor]) -> Tensor:
    """Return the weight (D, D / groups, kernel) under the name of the older or of the newer weight norm."""
    prefix = "encoder.transformer.pos_conv_embed.conv"
    newer = f"{prefix}.parametrizations.weight.original1"

    return state_dict[newer] if newer in state_dict else state_dict[f"{prefix}.weight_v"]

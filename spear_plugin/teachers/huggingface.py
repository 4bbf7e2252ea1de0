"""WavLM, HuBERT, wav2vec 2.0 and data2vec through transformers, by local folder or hub name.

Letters: N batch, S samples, T frames, D width.

Layers count as in ``hidden_states``: 0 is the input of the first block, ``n`` the output of the n-th. In models whose
blocks normalise their input (WavLM-Large and the like) the representations below the last one are the residual stream,
and the last one is behind the final layer norm. SPEAR's speech teacher is layer 21 of WavLM-Large (arXiv 2510.25955).

Each utterance is standardised when the checkpoint's feature extractor asks for it. (SPEAR's own code standardises the
padded batch as a whole, so its embeddings depend on the batch.) Models whose convolutions are normalised over time
(``feat_extract_norm="group"``) or whose position encoder is a stack of convolutions (data2vec) cannot ignore padding;
they get the utterances one by one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, count_conv_frames, embed_one_by_one, standardize

MODEL_TYPES: Final = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")

# Read in training alone, so some checkpoints leave it out.
_OPTIONAL_KEY: Final = "masked_spec_embed"


def load_huggingface_teacher(name_or_path: str, layer: int | None = None) -> HuggingFaceTeacher:
    """Build the teacher from a transformers checkpoint; a path that exists is never looked up on the hub.

    :param layer: Which hidden state; the last one by default.

    :raises TeacherError: If the checkpoint cannot be read, lacks weights, is of another kind or has no such layer.
    """
    import transformers  # noqa: PLC0415 (heavy, and needed by this adapter alone)

    library: Any = transformers

    local = Path(name_or_path).exists()
    try:
        config = library.AutoConfig.from_pretrained(name_or_path, local_files_only=local)
        _check_config(name_or_path, config, layer)
        extractor = library.AutoFeatureExtractor.from_pretrained(name_or_path, local_files_only=local)
        model, info = library.AutoModel.from_pretrained(name_or_path, local_files_only=local, output_loading_info=True)
    except TeacherError:
        raise
    except (OSError, ValueError, RuntimeError) as ex:
        reason = str(ex).splitlines()[0]
        raise TeacherError(
            f"{name_or_path}: must be a transformers checkpoint with its two configs and its weights, but loading "
            f"it failed: {reason}. Give a complete local folder or a name on the hub (`teacher.path`)."
        ) from ex

    missing = [key for key in info["missing_keys"] if not key.endswith(_OPTIONAL_KEY)]
    if missing:
        raise TeacherError(
            f"{name_or_path}: the checkpoint must hold all weights, but lacks {len(missing)}, such as {missing[0]}."
        )

    return HuggingFaceTeacher(
        Path(name_or_path).name,
        config.num_hidden_layers if layer is None else layer,
        model=model,
        sample_rate=extractor.sampling_rate,
        normalize=extractor.do_normalize,
    )


@final
class HuggingFaceTeacher(Teacher):
    """A hidden state of a transformers model that reads waveforms."""

    def __init__(self, weights: str, layer: int, *, model: Any, sample_rate: int, normalize: bool) -> None:
        config = model.config
        super().__init__(
            weights,
            layer,
            dim=config.hidden_size,
            frame_rate_hz=sample_rate / math.prod(config.conv_stride),
            sample_rate=sample_rate,
        )
        self.model = model
        self.normalize = normalize
        self.ignores_padding = (
            config.model_type != "data2vec-audio" and getattr(config, "feat_extract_norm", "layer") == "layer"
        )

        # One block more than needed is kept: the last hidden state alone passes the final layer norm.
        del model.encoder.layers[layer + 1 :]

    @override
    def num_frames(self, num_samples: int) -> int:
        config = self.model.config

        return count_conv_frames(num_samples, zip(config.conv_kernel, config.conv_stride, strict=True))

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        if self.normalize:
            waveforms = standardize(waveforms, lengths)

        if not self.ignores_padding:
            lengths = [n if self.num_frames(n) > 0 else 0 for n in lengths]
            return embed_one_by_one(self._run_model, waveforms, lengths, self.dim)

        positions = torch.arange(waveforms.size(1), device=waveforms.device)
        mask = positions < torch.tensor(lengths, device=waveforms.device).unsqueeze(-1)

        return self._run_model(waveforms, mask)

    def _run_model(self, waveforms: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, S) -> (N, T, D)."""
        output = self.model(waveforms, attention_mask=mask, output_hidden_states=True)

        return output.hidden_states[self.layer]  # type: ignore[no-any-return]


def _check_config(name: str, config: Any, layer: int | None) -> None:
    if config.model_type not in MODEL_TYPES:
        raise TeacherError(
            f"{name}: the model's type must be one of {', '.join(MODEL_TYPES)}, but is {config.model_type}."
        )

    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise TeacherError(f"{name}: `layer` must be from 0 to {config.num_hidden_layers}, but is {layer}.")

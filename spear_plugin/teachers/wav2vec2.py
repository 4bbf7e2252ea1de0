"""Any wav2vec 2.0 model of fairseq2 (pre-trained or fine-tuned to CTC), by card name or card file.

Letters: N batch, S samples, T frames, D width.

Layers count as in the adapter of transformers: 0 is the input of the first block, ``n`` the output of the n-th, the
last one behind the final layer norm (where there is one). Waveforms are standardised for models with layer norm in the
convolutions, which is how fairseq trained them (``normalize`` of the LV-60k and XLS-R models); others take them as they
are.

Models with group norm over time, or with another position encoder than one convolution, cannot ignore padding; they get
the utterances one by one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, final

from fairseq2.models.wav2vec2 import Wav2Vec2FeatureExtractor, Wav2Vec2Model, Wav2Vec2PositionEncoder
from fairseq2.models.wav2vec2.asr import Wav2Vec2AsrModel
from fairseq2.nn import BatchLayout
from torch import Tensor
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, count_conv_frames, embed_one_by_one, standardize
from spear_plugin.teachers.cards import load_asset

SAMPLE_RATE: Final = 16_000


def load_wav2vec2_teacher(card: str, layer: int | None = None) -> Wav2Vec2Teacher:
    """Build the teacher from an asset; ``init_fairseq2()`` (or a recipe) must have run before.

    :param card: Name of an asset card, YAML file with one, or output folder of a run.
    :param layer: Which hidden representation; the last one by default.

    :raises TeacherError: If there is no such card, it is of another family, reads fbanks or has no such layer.
    """
    model = load_asset(card)
    if not isinstance(model, Wav2Vec2Model | Wav2Vec2AsrModel):
        raise TeacherError(f"{card}: must be a wav2vec 2.0 model, but is of type {type(model).__name__}.")

    num_layers = len(model.encoder.layers)
    if layer is not None and not 0 <= layer <= num_layers:
        raise TeacherError(f"{card}: `layer` must be from 0 to {num_layers}, but is {layer}.")

    return Wav2Vec2Teacher(Path(card).stem, num_layers if layer is None else layer, model)


@final
class Wav2Vec2Teacher(Teacher):
    """A hidden representation of fairseq2's wav2vec 2.0 encoder."""

    def __init__(self, weights: str, layer: int, model: Wav2Vec2Model | Wav2Vec2AsrModel) -> None:
        extractor = model.encoder_frontend.feature_extractor
        if not isinstance(extractor, Wav2Vec2FeatureExtractor):
            raise TeacherError(f"{weights}: must read waveforms, but reads filterbanks (`use_fbank`).")

        stride = math.prod(stride for _, _, stride in extractor.layer_descs)
        super().__init__(
            weights, layer, dim=model.model_dim, frame_rate_hz=SAMPLE_RATE / stride, sample_rate=SAMPLE_RATE
        )
        self.frontend = model.encoder_frontend
        self.encoder = model.encoder
        self.layer_descs = extractor.layer_descs
        self.normalize = extractor.layers[0].layer_norm is not None
        self.ignores_padding = self.normalize and isinstance(self.frontend.pos_encoder, Wav2Vec2PositionEncoder)

        # The encoder ends at the chosen block; the final layer norm belongs to the last one only.
        if layer < len(self.encoder.layers):
            del self.encoder.layers[layer:]
            self.encoder.register_module("layer_norm", None)

    @override
    def num_frames(self, num_samples: int) -> int:
        return count_conv_frames(num_samples, (convolution[1:] for convolution in self.layer_descs))

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        if self.normalize:
            waveforms = standardize(waveforms, lengths)

        # A sequence without frames is no legal input, one of a single frame is; the base cuts what it gives.
        shortest = next(n for n in range(max(lengths) + 1) if self.num_frames(n) > 0)
        lengths = [max(n, shortest) for n in lengths]

        if self.ignores_padding:
            return self._run_model(waveforms, lengths)

        return embed_one_by_one(lambda row: self._run_model(row, [row.size(1)]), waveforms, lengths, self.dim)

    def _run_model(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        """(N, S) -> (N, T, D)."""
        seqs, layout = self.frontend(waveforms, BatchLayout.of(waveforms, lengths))

        return self.encoder(seqs, layout)

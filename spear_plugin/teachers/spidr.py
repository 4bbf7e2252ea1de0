"""Our own SpidR and DinoSR models as teachers, by card name or output folder of a run.

Letters: N batch, S samples, T frames, D width.

The model comes through fairseq2 by its family, as in :mod:`~spear_plugin.teachers.spear`. Layers count from 1, the
feed-forward output of the student's first layer: what ``extract_features`` of the model returns. Each utterance is
standardised, which is how these models are trained.

Models whose convolutions normalise over time (``group_norm``) cannot ignore padding; they get the
utterances one by one.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, TeacherHead, embed_one_by_one, standardize
from spear_plugin.teachers.cards import digest_weights, load_asset

SAMPLE_RATE: Final = 16_000
_EPSILON: Final = 1e-5
"""On the variance of a recording, as in the model's training."""


@runtime_checkable
class _FeatureModel(Protocol):
    config: Any

    def predict_units(self, waveforms: Tensor, lengths: Tensor, layer: int) -> Tensor: ...

    def extract_features(self, waveforms: Tensor, lengths: Tensor, *, num_layers: int) -> Any: ...


def load_spidr_teacher(name: str, layer: int | None = None) -> SpidrTeacher:
    """Build the teacher from a SpidR or DinoSR model; ``init_fairseq2()`` (or a recipe) must have run before.

    :param name: Name of an asset card, YAML file with one, or output folder of a run (its last checkpoint).
    :param layer: Which layer of the student; the last one by default.

    :raises TeacherError: If there is no such model, it is of another family or has no such layer.
    """
    model = load_asset(name)
    if not isinstance(model, _FeatureModel):
        raise TeacherError(f"{name}: must be a SpidR or DinoSR model, but is of type {type(model).__name__}.")

    num_layers = model.config.encoder.num_layers
    if layer is not None and not 1 <= layer <= num_layers:
        raise TeacherError(f"{name}: `layer` must be from 1 to {num_layers}, but is {layer}.")

    return SpidrTeacher(model, num_layers if layer is None else layer)


@final
class SpidrTeacher(Teacher):
    """A layer of the student of a SpidR or DinoSR model."""

    def __init__(self, model: Any, layer: int) -> None:
        geometry = model.feature_extractor.geometry
        super().__init__(
            f"spidr_{digest_weights(model)}",
            layer,
            dim=model.config.encoder.dim,
            frame_rate_hz=SAMPLE_RATE / geometry.hop,
            sample_rate=SAMPLE_RATE,
        )
        self.model = model
        self._geometry = geometry

    @override
    def heads(self) -> dict[str, TeacherHead]:
        """``units``, where the layer has a head; DinoSR's heads all read the encoder's output, which is no layer."""
        index = self.layer - 1 - self.model.first_head_layer
        if index < 0 or self.model.kind == "dinosr":
            return {}

        heads = self.model.heads
        return {"units": TeacherHead(heads.weight[index : index + 1], heads.bias[index : index + 1])}

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._geometry.num_frames(num_samples)  # type: ignore[no-any-return]

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        waveforms = standardize(waveforms, lengths, epsilon=_EPSILON)
        # The model takes no utterance without a frame; the base cuts what such a one gives.
        lengths = [max(n, self._geometry.receptive_field) for n in lengths]

        if self.model.config.feature_extractor.normalizes_over_time:
            return embed_one_by_one(lambda row: self._run_model(row, [row.size(1)]), waveforms, lengths, self.dim)

        return self._run_model(waveforms, lengths)

    def _run_model(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        """(N, S) -> (N, T, D)."""
        # Lengths stay on the host, where the model sees whether anything is padded.
        features = self.model.extract_features(waveforms, torch.tensor(lengths), num_layers=self.layer)

        return features.layers[-1]  # type: ignore[no-any-return]

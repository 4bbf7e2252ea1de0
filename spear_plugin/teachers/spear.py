"""Our own pre-trained models as teachers, by card name or output folder of a run.

Letters: N batch, S samples, T frames, D width.

The model comes through fairseq2 by its family, as those of :mod:`~spear_plugin.teachers.wav2vec2` do: this room imports
no model. Any family whose models extract features as SPEAR's do will serve. Layers count from 1, the output of the
first Zipformer layer; the last one is the model's output.

The front end of the model is narrower than an utterance, so the last 60 to 70 ms give no frame.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, TeacherHead
from spear_plugin.teachers.cards import digest_weights, load_asset

SAMPLE_RATE: Final = 16_000
_HOP: Final = 160
_FRONT_END_FRAMES: Final = 9
"""Log-mel frames that the first encoder frame sees; each further one takes two more."""


@runtime_checkable
class _FeatureModel(Protocol):
    config: Any

    def extract_features(self, waveforms: Tensor, lengths: Tensor) -> Any: ...


def load_spear_teacher(name: str, layer: int | None = None) -> SpearTeacher:
    """Build the teacher from a SPEAR model; ``init_fairseq2()`` (or a recipe) must have run before.

    :param name: Name of an asset card, YAML file with one, or output folder of a run (its last checkpoint).
    :param layer: Which Zipformer layer's output; the model's output by default.

    :raises TeacherError: If there is no such model, it gives no features or has no such layer.
    """
    model = load_asset(name)
    if not isinstance(model, _FeatureModel) or not hasattr(model.config, "zipformer"):
        raise TeacherError(f"{name}: must be a SPEAR model, but is of type {type(model).__name__}.")

    zipformer = model.config.zipformer
    num_layers = sum(zipformer.num_layers)
    if layer is not None and not 1 <= layer <= num_layers:
        raise TeacherError(f"{name}: `layer` must be from 1 to {num_layers}, but is {layer}.")

    return SpearTeacher(model, num_layers if layer is None else layer)


@final
class SpearTeacher(Teacher):
    """A layer of a model of ours; an utterance gives the features that it has alone (``extract_features``)."""

    def __init__(self, model: Any, layer: int) -> None:
        zipformer = model.config.zipformer
        self.num_layers = sum(zipformer.num_layers)
        is_output = layer == self.num_layers
        rate = 50.0 / zipformer.output_downsampling_factor if is_output else 50.0
        stack = next(i for i in range(len(zipformer.num_layers)) if layer <= sum(zipformer.num_layers[: i + 1]))
        dim = max(zipformer.encoder_dims) if is_output else zipformer.encoder_dims[stack]
        super().__init__(f"spear_{digest_weights(model)}", layer, dim=dim, frame_rate_hz=rate, sample_rate=SAMPLE_RATE)
        self.model = model

    @override
    def heads(self) -> dict[str, TeacherHead]:
        """By the name of the target stream; heads that predict several code frames at a time are left out."""
        if self.layer < self.num_layers:
            return {}

        return {
            name: TeacherHead(head.weight, head.bias)
            for name, head in self.model.heads.items()
            if len(head.weight) == head.num_codebooks
        }

    @override
    def num_frames(self, num_samples: int) -> int:
        num_mel_frames = (num_samples + _HOP // 2) // _HOP
        num_frames = max(0, (num_mel_frames - _FRONT_END_FRAMES + 2) // 2)

        return -(-num_frames // round(50.0 / self.frame_rate_hz))

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        # The model takes no utterance without frames; the base cuts what such a one gives.
        shortest = next(n for n in range(0, max(lengths) + 1, _HOP // 2) if self.num_frames(n) > 0)
        features = self.model.extract_features(
            waveforms, torch.tensor(lengths, device=waveforms.device).clamp(min=shortest)
        )

        return features.last if self.layer == self.num_layers else features.layers[self.layer - 1]  # type: ignore[no-any-return]

"""Encoders of all families behind one interface: waveforms in [-1, 1] to frames of all layers.

Letters: N batch, S samples, F log-mel frames, M mel bins, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from typing_extensions import override

from spear_plugin.models.downstream.augmentation import SpecAugmentation
from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spear.fbank import NUM_MEL_BINS, compute_fbank
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms

_LOG_MEL_MEAN: Final = -8.0
_LOG_MEL_SCALE: Final = 4.0
"""Of speech in [-1, 1], roughly; the same for all recordings, so that loud ones stay loud."""


@dataclass(kw_only=True)
class EncodedFrames:
    """What a head reads."""

    last: Tensor
    """(N, T, D), the encoder's output."""

    layers: list[Tensor]
    """(N, T, D) for each layer."""

    lengths: Tensor
    """(N,) int64, the valid frames of ``last``; what lies beyond has no meaning."""


class FrameEncoder(Module, ABC):
    """An encoder without the parts that only its pre-training uses.

    Args:
        dim: D.
        num_layers: The number of layers.
    """

    def __init__(self, *, dim: int, num_layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_layers = num_layers

    @abstractmethod
    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncodedFrames:
        """Encode a batch; in training behind masks.

        Args:
            waveforms: (N, S) float32 in [-1, 1] at 16 kHz.
            lengths: (N,) int64 in samples, each at most S, on any device; on the host nothing waits for a GPU.
        """

    def unused_parameters(self) -> Iterator[Parameter]:
        """Yield the parameters that :meth:`forward` never uses."""
        yield from ()

    def layer_lists(self) -> list[ModuleList]:
        """Return lists of layers, for wrappers that work layer by layer."""
        return []

    def trained_parameters(self) -> Iterator[Parameter]:
        """Yield the parameters that take part in training."""
        unused = {id(parameter) for parameter in self.unused_parameters()}
        yield from (parameter for parameter in self.parameters() if id(parameter) not in unused)

    if TYPE_CHECKING:
        __call__ = forward


@final
class SpearEncoder(FrameEncoder):
    """A SPEAR model without heads; an utterance is encoded as if it were alone."""

    def __init__(self, model: SpearModel, augmentation: SpecAugmentation | None) -> None:
        sizes = model.config.zipformer
        super().__init__(dim=max(sizes.encoder_dims), num_layers=sum(sizes.num_layers))
        self.model = model
        self.augmentation = augmentation

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncodedFrames:
        fbank, lengths = compute_fbank(waveforms, lengths.to(waveforms.device))
        fbank = _augment(fbank, lengths, self.augmentation)
        features = self.model.extract_features_from_fbank(fbank, lengths)
        return EncodedFrames(last=features.last, layers=features.layers, lengths=features.lengths)

    @override
    def unused_parameters(self) -> Iterator[Parameter]:
        yield self.model.mask_emb

    @override
    def layer_lists(self) -> list[ModuleList]:
        return self.model.encoder.layer_lists


@final
class SpidrEncoder(FrameEncoder):
    """The student of a SpidR or DinoSR model; its layers are the outputs of the feed-forward networks."""

    def __init__(self, model: SpidrModel, augmentation: SpecAugmentation | None) -> None:
        super().__init__(dim=model.config.encoder.dim, num_layers=model.config.encoder.num_layers)
        self.model = model
        self.augmentation = augmentation
        if augmentation is not None:
            # The model has no place for masks between its frames and its student but that of pre-training.
            model.feature_projection.register_forward_hook(self._mask)
        self._is_valid: Tensor | None = None

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncodedFrames:
        self._is_valid = self._find_valid(waveforms, lengths)
        features = self.model.extract_features(standardize_waveforms(waveforms, lengths), lengths)
        self._is_valid = None
        return EncodedFrames(last=features.layers[-1], layers=features.layers, lengths=features.lengths)

    def _find_valid(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return (N, T) bool."""
        geometry = self.model.feature_extractor.geometry
        positions = torch.arange(geometry.num_frames(waveforms.size(1)), device=waveforms.device)
        return positions < geometry.num_frames_of(lengths).to(waveforms.device)[:, None]

    def _mask(self, module: Module, inputs: tuple[Tensor, ...], frames: Tensor) -> Tensor:
        del module, inputs
        assert self.augmentation is not None
        masked: Tensor = self.augmentation(frames, self._is_valid)
        return masked

    @override
    def unused_parameters(self) -> Iterator[Parameter]:
        yield self.model.mask_embedding
        yield from self.model.heads.parameters()
        yield from self.model.teacher.parameters()
        # The last layer is read before its residual connection, so what follows it is not used.
        student = self.model.student
        if student.layer_norm_first:
            yield from student.layer_norm.parameters()
        else:
            yield from student.layers[-1].get_submodule("final_layer_norm").parameters()

    @override
    def layer_lists(self) -> list[ModuleList]:
        return [self.model.student.layers]


@final
class LogMelEncoder(FrameEncoder):
    """Pairs of log-mel frames, scaled to about mean 0 and variance 1: what a head can do by itself."""

    def __init__(self, augmentation: SpecAugmentation | None) -> None:
        super().__init__(dim=2 * NUM_MEL_BINS, num_layers=1)
        self.augmentation = augmentation

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncodedFrames:
        fbank, lengths = compute_fbank(waveforms, lengths.to(waveforms.device))
        fbank = _augment((fbank - _LOG_MEL_MEAN) / _LOG_MEL_SCALE, lengths, self.augmentation)
        num_pairs = fbank.size(1) // 2
        # (N, F, M) -> (N, T, D)
        frames = fbank[:, : 2 * num_pairs].reshape(fbank.size(0), num_pairs, -1)
        return EncodedFrames(last=frames, layers=[frames], lengths=lengths // 2)


def _find_frames(fbank: Tensor, lengths: Tensor) -> Tensor:
    """Return (N, F) bool, True on valid frames."""
    return torch.arange(fbank.size(1), device=fbank.device) < lengths[:, None]


def _augment(fbank: Tensor, lengths: Tensor, augmentation: SpecAugmentation | None) -> Tensor:
    return fbank if augmentation is None else augmentation(fbank, _find_frames(fbank, lengths))

"""Frozen features of waveforms by our models, teachers and log-mel energies, and when their frames are.

Letters: L layers, N batch, S samples, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, final

import torch
from torch import Tensor
from typing_extensions import override

from recipes.models import RunStep, weights_digest
from spear_plugin.models.spear import SPEAR_TIMING as SPEAR_TIMING
from spear_plugin.models.spear import SpearModel, num_output_frames, output_timing
from spear_plugin.models.spear.fbank import NUM_MEL_BINS, SAMPLE_RATE, compute_fbank, num_fbank_frames
from spear_plugin.models.spidr import SAMPLE_RATE as SPIDR_SAMPLE_RATE
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms
from spear_plugin.models.spidr import spidr_timing as spidr_timing
from spear_plugin.nn.timing import FrameTiming as FrameTiming
from spear_plugin.teachers import Teacher

LOG_MEL_TIMING: Final = FrameTiming(50.0, first_centre=0.010)
"""A pair of fbank frames, 2t and 2t + 1, is centred between them, at 20 t + 10 ms."""


_MIN_LOG_MEL_SAMPLES: Final = 400
"""A window of 25 ms, which log-mel features need at least."""


class FeatureSource(ABC):
    """Frozen features of waveforms."""

    name: str
    """What messages call it."""

    identity: str
    """Changes when the features may change."""

    sample_rate: int

    timing: FrameTiming

    layer_dims: Sequence[int]
    """The width of each layer."""

    checkpoint: RunStep | None = None
    """What it is of, if it is a checkpoint of a run."""

    model: SpearModel | SpidrModel | None = None
    """What it reads, if that is a model of ours."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a file of ``num_samples`` at ``sample_rate`` gives; 0 if it is too short for one."""

    @abstractmethod
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the layers, L of (N, T, D), and the lengths (N,) in frames.

        :param waveforms: (N, S) in [-1, 1] at ``sample_rate``, zero beyond the ``lengths`` (N,); the longest gives at
            least one frame.
        """


@final
class SpearSource(FeatureSource):
    """The outputs of all Zipformer layers at 50 Hz, or that of the encoder at its own rate."""

    name = "SPEAR"

    def __init__(self, model: SpearModel, *, output_only: bool = False) -> None:
        self.model = self._model = model.eval()
        self._output_only = output_only

        sizes = model.config.zipformer

        # Layers have the front end's rate, whatever that of the output.
        factor = sizes.output_downsampling_factor if output_only else 1

        self._counted = replace(model.config, zipformer=replace(sizes, output_downsampling_factor=factor))

        self.identity = f"spear:{weights_digest(model)}"

        self.sample_rate = SAMPLE_RATE

        self.timing = output_timing(model.config) if output_only else SPEAR_TIMING

        layer_dims = [dim for n, dim in zip(sizes.num_layers, sizes.encoder_dims, strict=True) for _ in range(n)]

        self.layer_dims = [max(sizes.encoder_dims)] if output_only else layer_dims

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_output_frames(num_samples, self._counted)

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self._model.extract_features(waveforms, lengths)

        num_frames = torch.tensor([self.num_frames(n) for n in lengths.tolist()], device=lengths.device)

        return [features.last] if self._output_only else features.layers, num_frames


@final
class SpidrSource(FeatureSource):
    """The features of all SpidR or DinoSR layers, or those of the last one; each recording is standardized."""

    name = "SpidR"
    sample_rate = SPIDR_SAMPLE_RATE

    def __init__(self, model: SpidrModel, *, output_only: bool = False) -> None:
        self.model = self._model = model.eval()
        self._output_only = output_only
        self._geometry = model.feature_extractor.geometry

        self.identity = f"spidr:{weights_digest(model)}"

        self.timing = spidr_timing(self._geometry)

        sizes = model.config.encoder

        self.layer_dims = [sizes.dim] * (1 if output_only else sizes.num_layers)

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._geometry.num_frames(num_samples)

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        # On the host, where the model sees that nothing is padded; rows without a frame get one that is not counted.
        num_samples = lengths.cpu().clamp(min=self._geometry.receptive_field)

        layers = self._model.extract_features(standardize_waveforms(waveforms, lengths), num_samples).layers

        return layers[-1:] if self._output_only else layers, self._geometry.num_frames_of(lengths)


@final
class TeacherSource(FeatureSource):
    """The one layer that a teacher gives."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

        self.name = teacher.name

        self.identity = f"teacher:{teacher.name}:{weights_digest(teacher)}"

        self.sample_rate = teacher.sample_rate

        self.timing = FrameTiming(teacher.frame_rate_hz, first_centre=0.5 / teacher.frame_rate_hz)

        self.layer_dims = [teacher.dim]

    @override
    def num_frames(self, num_samples: int) -> int:
        return self._teacher.num_frames(num_samples)

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        output = self._teacher(waveforms, lengths)

        return [output.frames], output.lengths


@final
class LogMelSource(FeatureSource):
    """The model's input: 128 log-mel energies, two frames stacked to 256 values at 50 Hz.

    Stacking keeps what averaging would lose, so this is the stronger baseline.
    """

    name = "log-mel"
    identity = "log_mel:2x128"
    sample_rate = SAMPLE_RATE
    timing = LOG_MEL_TIMING
    layer_dims = (2 * NUM_MEL_BINS,)

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_fbank_frames(num_samples) // 2 if num_samples >= _MIN_LOG_MEL_SAMPLES else 0

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        fbank, lengths = compute_fbank(waveforms, lengths)

        num_pairs = fbank.size(1) // 2

        # (N, F, M) -> (N, F/2, 2M)
        return [fbank[:, : 2 * num_pairs].reshape(fbank.size(0), num_pairs, -1)], lengths // 2

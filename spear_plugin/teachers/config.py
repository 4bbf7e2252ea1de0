from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(kw_only=True)
class TeacherConfig:
    """Which frozen model gives the targets."""

    name: str = "whisper"
    """The adapter: ``whisper``, ``aisfx``, ``dasheng``, ``huggingface``, ``torchaudio``, ``fairseq2_wav2vec2``,
    ``spear``, ``spidr``, ``log_mel``, or a name that an installed package offers (entry point
    ``spear_plugin.teachers``)."""

    path: str | None = None
    """Where the weights are. ``whisper``, ``aisfx``: the file or a folder with it; the installed package by default.
    ``dasheng``: the file, or a folder with ``model.safetensors``. ``torchaudio``: the file of a bundle.
    ``huggingface``: a local folder or a name on the hub. ``fairseq2_wav2vec2``, ``spear``, ``spidr``: name or YAML
    file of an asset card, or the output folder of a run. ``log_mel``: none."""

    layer: int | None = None
    """Hidden representation, counted from 0 (input of the first block); by default 3 of Whisper, else the last one."""

    dtype: str = "float32"
    """Precision of the network, ``float32``, ``bfloat16`` or ``float16``; part of the identity. Front ends and weights
    stay float32. In half precision an utterance's frames depend on its batch by the rounding errors of that type."""

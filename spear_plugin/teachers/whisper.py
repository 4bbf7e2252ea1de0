"""Encoder of Whisper (arXiv 2212.04356) from a CTranslate2 file, as a teacher of 50 frames a second.

Letters: N batch, S samples, F mel frames (100 Hz), T frames (50 Hz), M mels, D width, H heads.

Differences from the published use, where each input is padded to 30 s:

* Attention sees an utterance's own frames only, so that short utterances cost little and padding does not matter. The
  input of the first block equals that of the padded utterance.
* An utterance longer than 30 s is embedded in windows of 30 s, each as if it were an utterance.
* The frames are ``samples // 320``: the last incomplete one is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, final

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import GELU, Conv1d, LayerNorm, Linear, Module, ModuleList, Sequential
from torch.nn.functional import gelu, pad, scaled_dot_product_attention
from torchaudio.functional import melscale_fbanks
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, full_precision
from spear_plugin.teachers.ctranslate2 import read_ctranslate2
from spear_plugin.teachers.weights import name_weights

SAMPLE_RATE: Final = 16_000
FFT_SIZE: Final = 400
HOP: Final = 160
SAMPLES_PER_FRAME: Final = 2 * HOP  # the second convolution has stride 2

# SHA-256 of the packaged model, whose file does not carry a name.
KNOWN_WEIGHTS: Final = {"1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a": "whisper_tiny_en"}

# Highest accuracy of linear phone probes (.649, .701, .741, .728 for layers 1 to 4 on held-out English prompts).
DEFAULT_LAYER: Final = 3

_KEY_MAP: Final = {
    r"^layer_(\d+)/": r"layers.\1.",
    r"self_attention/layer_norm/": "attention_norm.",
    r"self_attention/linear_0/": "qkv_proj.",
    r"self_attention/linear_1/": "output_proj.",
    r"ffn/layer_norm/": "ffn.0.",
    r"ffn/linear_0/": "ffn.1.",
    r"ffn/linear_1/": "ffn.3.",
    r"^position_encodings/encodings$": "position_encodings",
    r"gamma$": "weight",
    r"beta$": "bias",
    r"/": ".",
}


def load_whisper_teacher(path: Path, layer: int | None = None) -> WhisperTeacher:
    """Build the teacher from the ``model.bin`` of a Whisper model converted to CTranslate2 (float16 or float32).

    :raises TeacherError: If the file is not such a model, or has no such layer.
    """
    specification, arrays = read_ctranslate2(path)
    if specification != "WhisperSpec":
        raise TeacherError(f"{path}: must hold a Whisper model (WhisperSpec), but holds {specification}.")

    arrays = {key.removeprefix("encoder/"): value for key, value in arrays.items() if key.startswith("encoder/")}
    num_heads = int(arrays.pop("num_heads"))
    teacher = WhisperTeacher(
        name_weights(path, KNOWN_WEIGHTS, default="whisper"),
        DEFAULT_LAYER if layer is None else layer,
        num_layers=len({key.split("/")[0] for key in arrays if re.match(r"layer_\d", key)}),
        num_heads=num_heads,
        num_mels=arrays["conv1/weight"].shape[1],
        dim=arrays["conv1/weight"].shape[0],
        max_frames=arrays["position_encodings/encodings"].shape[0],
    )
    teacher.load_state_dict(_convert_arrays(arrays, teacher.state_dict().keys()), strict=True)

    return teacher


@final
class WhisperTeacher(Teacher):
    """Hidden representations of Whisper's encoder; layer 0 is the convolutions' output with positions added.

    The last layer is the encoder's output, that is behind the final layer norm; those below it are not normalised.
    """

    def __init__(
        self, weights: str, layer: int, *, num_layers: int, num_heads: int, num_mels: int, dim: int, max_frames: int
    ) -> None:
        if not 0 <= layer <= num_layers:
            raise TeacherError(f"Teacher {weights}: `layer` must be from 0 to {num_layers}, but is {layer}.")

        super().__init__(
            weights, layer, dim=dim, frame_rate_hz=SAMPLE_RATE / SAMPLES_PER_FRAME, sample_rate=SAMPLE_RATE
        )
        self.window = max_frames * SAMPLES_PER_FRAME
        self.conv1 = Conv1d(num_mels, dim, kernel_size=3, padding=1)
        self.conv2 = Conv1d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.layers = ModuleList(_EncoderLayer(dim, num_heads) for _ in range(layer))
        self.layer_norm = LayerNorm(dim) if layer == num_layers else None
        self.position_encodings: Tensor
        self.mel_filters: Tensor
        self.register_buffer("position_encodings", torch.zeros(max_frames, dim))
        self.register_buffer("mel_filters", _create_mel_filters(num_mels), persistent=False)

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_samples // SAMPLES_PER_FRAME

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        num_frames = torch.tensor(lengths, device=waveforms.device) // SAMPLES_PER_FRAME
        num_windows = -(-self.num_frames(max(lengths)) * SAMPLES_PER_FRAME // self.window)

        # (N, S) -> (N, T, D)
        return torch.cat(
            [
                self._embed_window(window, num_frames - index * self.position_encodings.size(0))
                for index, window in enumerate(torch.split(waveforms, self.window, dim=1)[:num_windows])
            ],
            dim=1,
        )

    def _embed_window(self, waveforms: Tensor, num_frames: Tensor) -> Tensor:
        # (N, S) -> (N, M, F); never more frames than of 30 s, behind which the convolutions pad with zeros
        with full_precision(waveforms):
            mels = _extract_log_mel(waveforms, self.mel_filters)[..., : self.window // HOP]

        # (N, M, F) -> (N, D, F / 2) -> (N, T, D)
        x = gelu(self.conv2(gelu(self.conv1(mels)))).transpose(1, 2)
        x = x[:, : waveforms.size(1) // SAMPLES_PER_FRAME]
        x = x + self.position_encodings[: x.size(1)]

        # (N, 1, 1, T); a row without frames attends to one, since a softmax over nothing is NaN
        positions = torch.arange(x.size(1), device=x.device)
        mask = (positions < num_frames.clamp(min=1).unsqueeze(-1))[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)

        return x if self.layer_norm is None else self.layer_norm(x)


@final
class _EncoderLayer(Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = LayerNorm(dim)
        self.qkv_proj = Linear(dim, 3 * dim)
        self.output_proj = Linear(dim, dim)
        self.ffn = Sequential(LayerNorm(dim), Linear(dim, 4 * dim), GELU(), Linear(4 * dim, dim))

    @override
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # (N, T, D) -> 3 x (N, H, T, D / H)
        q, k, v = self.qkv_proj(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

        # (N, H, T, D / H) -> (N, T, D)
        x = x + self.output_proj(scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

        return x + self.ffn(x)  # type: ignore[no-any-return]


def _extract_log_mel(waveforms: Tensor, mel_filters: Tensor) -> Tensor:
    """Return Whisper's input features (N, M, F) with F >= ``samples // 160 + 3``.

    The silence added on the right keeps every frame that touches the signal. Thus the maximum that scales an utterance
    and all values that matter to its valid frames are those of an input padded to 30 s.
    """
    # (N, S) -> (N, S + 720), mirrored on the left as in the published front end
    waveforms = pad(waveforms.unsqueeze(1), (FFT_SIZE // 2, 0), mode="reflect").squeeze(1)
    waveforms = pad(waveforms, (0, 2 * HOP + FFT_SIZE // 2))
    window = torch.hann_window(FFT_SIZE, device=waveforms.device)
    spectrum = torch.stft(waveforms, FFT_SIZE, HOP, window=window, center=False, return_complex=True)

    # (N, FFT_SIZE / 2 + 1, F) -> (N, M, F)
    mels = (mel_filters @ spectrum.abs().square()).clamp(min=1e-10).log10()

    return (torch.maximum(mels, mels.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def _create_mel_filters(num_mels: int) -> Tensor:
    # (FFT_SIZE / 2 + 1, M) -> (M, FFT_SIZE / 2 + 1)
    return melscale_fbanks(  # type: ignore[no-any-return]
        FFT_SIZE // 2 + 1, 0.0, SAMPLE_RATE / 2, num_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    ).T.contiguous()


def _convert_arrays(arrays: dict[str, NDArray[Any]], keys: Collection[str]) -> dict[str, Tensor]:
    state_dict = {}
    for key, array in arrays.items():
        for pattern, replacement in _KEY_MAP.items():
            key = re.sub(pattern, replacement, key)
        if key in keys:  # blocks above the chosen layer are not built
            state_dict[key] = torch.tensor(array, dtype=torch.float32)

    return state_dict

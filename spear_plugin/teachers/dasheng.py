"""Dasheng (arXiv 2406.06992), a masked autoencoder of general audio: SPEAR's audio teacher at 25 Hz.

Letters: N batch, S samples, F mel frames (100 Hz), M mels, T frames (25 Hz), D width, H heads, W windows.

Written here for the layout of the released weights, since the package ``dasheng`` would bring its training code and its
way of batching: it scales the spectra of a batch by their common maximum. Checkpoints are the authors' files (a
dictionary with ``model`` and ``config``), the exports for transformers (keys below ``encoder.``) or plain state dicts.

* The spectrum of each utterance is computed by itself (mirrored at its ends, at most 120 dB below its own maximum), and
  attention sees its own frames only. The frames are ``samples // 640``, as SPEAR counts them; one more, which the
  network alone makes of a rest of 30 ms, is left out.
* The model knows 252 positions, so a longer utterance is embedded in windows of 10.08 s, as the authors do it.

Layer 0 is the input of the first block, ``n`` the output of the n-th; the last one, SPEAR's choice (40 of 1.2B), is
behind the final layer norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import GELU, BatchNorm1d, Conv2d, LayerNorm, Linear, Module, ModuleList, Parameter, Sequential
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import melscale_fbanks
from typing_extensions import override

from spear_plugin.teachers.base import Teacher, TeacherError, full_precision
from spear_plugin.teachers.weights import load_weights, name_weights, read_state_dict

SAMPLE_RATE: Final = 16_000
FFT_SIZE: Final = 512
HOP: Final = 160
MEL_FRAMES_PER_FRAME: Final = 4
SAMPLES_PER_FRAME: Final = HOP * MEL_FRAMES_PER_FRAME
MAX_DECIBELS_BELOW: Final = 120.0

# Of base, 0.6B and 1.2B; the weights do not tell it.
_NUM_HEADS: Final = {768: 12, 1280: 16, 1536: 24}


def load_dasheng_teacher(path: Path, layer: int | None = None) -> DashengTeacher:
    """Build the teacher from a checkpoint, or from a folder with ``model.safetensors``.

    :param layer: Which hidden representation; the last one by default.

    :raises TeacherError: If the file is missing, damaged or of another kind, or has no such layer.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    content = read_state_dict(path, "Dasheng")
    config = content.get("config", {})
    state_dict = _convert_keys(content.get("model", content))
    try:
        dim, _, num_mels, _ = state_dict["patch_embed.proj.weight"].shape
        max_frames = state_dict["time_pos_embed"].size(-1)
    except (KeyError, AttributeError, ValueError) as ex:
        raise TeacherError(f"{path}: must hold the weights of a Dasheng model, but lacks {ex}. Check the path.") from ex

    num_heads = _NUM_HEADS.get(dim) or (config.get("num_heads") if isinstance(config, dict) else None)
    if num_heads is None:
        raise TeacherError(f"{path}: the width must be that of a released model ({list(_NUM_HEADS)}), but is {dim}.")

    num_layers = len({key.split(".")[1] for key in state_dict if key.startswith("blocks.")})
    if layer is not None and not 0 <= layer <= num_layers:
        raise TeacherError(f"{path}: `layer` must be from 0 to {num_layers}, but is {layer}.")

    teacher = DashengTeacher(
        name_weights(path, {}, default="dasheng"),
        num_layers if layer is None else layer,
        num_layers=num_layers,
        num_heads=num_heads,
        num_mels=num_mels,
        dim=dim,
        max_frames=max_frames,
    )
    load_weights(teacher, state_dict, path, "Dasheng")
    teacher.drop_unused_layers()

    return teacher


@final
class DashengTeacher(Teacher):
    """Hidden representations of Dasheng's encoder."""

    def __init__(
        self, weights: str, layer: int, *, num_layers: int, num_heads: int, num_mels: int, dim: int, max_frames: int
    ) -> None:
        super().__init__(
            weights, layer, dim=dim, frame_rate_hz=SAMPLE_RATE / SAMPLES_PER_FRAME, sample_rate=SAMPLE_RATE
        )
        self.init_bn = Sequential(OrderedDict({"1": BatchNorm1d(num_mels)}))
        patch = (num_mels, MEL_FRAMES_PER_FRAME)
        self.patch_embed = Sequential(OrderedDict({"proj": Conv2d(1, dim, kernel_size=patch, stride=patch)}))
        self.time_pos_embed = Parameter(torch.zeros(1, dim, 1, max_frames))
        self.freq_pos_embed = Parameter(torch.zeros(1, dim, 1, 1))
        self.blocks = ModuleList(_Block(dim, num_heads) for _ in range(num_layers))
        self.norm: LayerNorm | None = LayerNorm(dim, eps=1e-6)
        self.mel_filters: Tensor
        filters = melscale_fbanks(FFT_SIZE // 2 + 1, 0.0, SAMPLE_RATE / 2, num_mels, SAMPLE_RATE).T.contiguous()
        self.register_buffer("mel_filters", filters, persistent=False)

    def drop_unused_layers(self) -> None:
        """Remove what lies behind the chosen layer."""
        if self.layer < len(self.blocks):
            del self.blocks[self.layer :]
            self.norm = None

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_samples // SAMPLES_PER_FRAME

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        num_frames = [self.num_frames(n) for n in lengths]
        with full_precision(waveforms):
            # N x (M, F) -> (N, F, M) -> (N, M, F)
            mels = [self._extract_log_mel(row[:n], t) for row, n, t in zip(waveforms, lengths, num_frames, strict=True)]
            x = self.init_bn(pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2))

        # (N, M, F) -> (N, D, 1, T) -> (N, T, D)
        x = self.patch_embed(x.unsqueeze(1)).squeeze(2).transpose(1, 2)

        return self._encode(x, torch.tensor(num_frames, device=x.device))

    def _extract_log_mel(self, waveform: Tensor, num_frames: int) -> Tensor:
        """(S,) -> (M, 4 T) in decibels."""
        if num_frames == 0:
            return waveform.new_zeros(self.mel_filters.size(0), 0)

        # The window is the periodic one of `torchaudio.transforms.MelSpectrogram`.
        window = torch.hann_window(FFT_SIZE, device=waveform.device)
        spectrum = torch.stft(waveform, FFT_SIZE, HOP, window=window, pad_mode="reflect", return_complex=True)
        decibels = 10.0 * (self.mel_filters @ spectrum.abs().square()).clamp(min=1e-10).log10()

        return torch.maximum(decibels, decibels.amax() - MAX_DECIBELS_BELOW)[:, : MEL_FRAMES_PER_FRAME * num_frames]

    def _encode(self, x: Tensor, num_frames: Tensor) -> Tensor:
        """Embed patches (N, T, D) in windows of the model's positions."""
        total = x.size(1)
        size = min(total, self.time_pos_embed.size(-1))
        num_windows = -(-total // size)
        # (N, T, D) -> (N W, window, D), with the number of valid frames of each
        windows = pad(x, (0, 0, 0, num_windows * size - total)).unflatten(1, (num_windows, size)).flatten(0, 1)
        starts = torch.arange(num_windows, device=x.device) * size
        counts = (num_frames[:, None] - starts).clamp(0, size).flatten()

        # (D, window) -> (window, D)
        windows = windows + (self.time_pos_embed[0, :, 0, :size] + self.freq_pos_embed[0, :, 0]).T
        # (N W, 1, 1, window); a window without frames attends to one, since a softmax over nothing is NaN
        mask = (torch.arange(size, device=x.device) < counts.clamp(min=1)[:, None])[:, None, None]
        for block in self.blocks:
            windows = block(windows, mask)
        if self.norm is not None:
            windows = self.norm(windows)

        frames: Tensor = windows.unflatten(0, (-1, num_windows)).flatten(1, 2)

        return frames[:, :total]


@final
class _Block(Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        layers = {"fc1": Linear(dim, 4 * dim), "act": GELU(), "fc2": Linear(4 * dim, dim)}
        self.mlp = Sequential(OrderedDict(layers))

    @override
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)

        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


@final
class _Attention(Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    @override
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # (N, T, D) -> 3 x (N, H, T, D / H) -> (N, T, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

        return self.proj(scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _convert_keys(state_dict: Any) -> dict[str, Tensor]:
    """Return the encoder's weights without those of the front end, which are computed, and of heads."""
    if not isinstance(state_dict, Mapping):
        return {}

    prefix = "encoder." if any(key.startswith("encoder.") for key in state_dict) else ""
    kept = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}

    return {key: value for key, value in kept.items() if not key.startswith(("front_end.", "outputlayer."))}

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import TransformerEncoderLayer
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, dasheng, load_teacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

DIM, HEADS, DEPTH, MELS, POSITIONS = 24, 3, 3, 64, 10
SAMPLES_PER_FRAME = 640


def _make_weights() -> dict[str, Tensor]:
    """Return random weights with the names and shapes of the released checkpoints."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        "front_end.0.mel_scale.fb": draw(257, MELS),
        "init_bn.1.weight": draw(MELS) + 1,
        "init_bn.1.bias": draw(MELS),
        "init_bn.1.running_mean": draw(MELS) - 20,
        "init_bn.1.running_var": draw(MELS).abs() + 100,
        "init_bn.1.num_batches_tracked": torch.tensor(3),
        "patch_embed.proj.weight": draw(DIM, 1, MELS, 4),
        "patch_embed.proj.bias": draw(DIM),
        "time_pos_embed": draw(1, DIM, 1, POSITIONS),
        "freq_pos_embed": draw(1, DIM, 1, 1),
        "norm.weight": draw(DIM) + 1,
        "norm.bias": draw(DIM),
    }
    shapes = {
        "norm1.weight": (DIM,), "norm1.bias": (DIM,), "attn.qkv.weight": (3 * DIM, DIM), "attn.qkv.bias": (3 * DIM,),
        "attn.proj.weight": (DIM, DIM), "attn.proj.bias": (DIM,), "norm2.weight": (DIM,), "norm2.bias": (DIM,),
        "mlp.fc1.weight": (4 * DIM, DIM), "mlp.fc1.bias": (4 * DIM,), "mlp.fc2.weight": (DIM, 4 * DIM),
        "mlp.fc2.bias": (DIM,),
    }  # fmt: skip
    return weights | {f"blocks.{i}.{name}": draw(*shape) for i in range(DEPTH) for name, shape in shapes.items()}


def _save(folder: Path, weights: dict[str, Tensor] | None = None) -> Path:
    path = folder / "dasheng.pt"
    torch.save({"model": _make_weights() if weights is None else weights, "config": {"num_heads": HEADS}}, path)
    return path


def _load(path: Path, layer: int | None = None) -> Teacher:
    return load_teacher(TeacherConfig(name="dasheng", path=str(path), layer=layer), device=torch.device("cpu"))


def _run_oracle(weights: dict[str, Tensor], waveform: Tensor) -> list[Tensor]:
    """Return the states (T, D) of one utterance (1, S), by the parts of torch and torchaudio."""
    mel = MelSpectrogram(16000, n_fft=512, win_length=512, hop_length=160, f_min=0, f_max=8000, n_mels=MELS)
    x = AmplitudeToDB(top_db=120)(mel(waveform))
    mean, var, scale, bias = (
        weights[f"init_bn.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = torch.nn.functional.batch_norm(x, mean, var, scale, bias)
    x = torch.nn.functional.conv2d(
        x[None], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], (MELS, 4)
    )
    states: list[list[Tensor]] = []
    for window in torch.split(x, POSITIONS, dim=-1):
        x = window + weights["time_pos_embed"][..., : window.size(-1)] + weights["freq_pos_embed"]
        x = x.flatten(2).transpose(1, 2)
        states.append([x[0]])
        for i in range(DEPTH):
            x = _make_oracle_block(weights, f"blocks.{i}.")(x)
            states[-1].append(x[0])
        states[-1][-1] = torch.nn.functional.layer_norm(
            x[0], (DIM,), weights["norm.weight"], weights["norm.bias"], 1e-6
        )
    return [torch.cat(parts) for parts in zip(*states, strict=True)]


def _make_oracle_block(weights: dict[str, Tensor], prefix: str) -> TransformerEncoderLayer:
    block = TransformerEncoderLayer(DIM, HEADS, 4 * DIM, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    names = {
        "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    block.load_state_dict({a + k: weights[prefix + b + k] for a, b in names.items() for k in ("weight", "bias")})
    return block


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("num_frames", [7, 10, 23])  # within the positions, all of them, and of several windows
def test_layers_are_those_of_the_published_network(tmp_path: Path, layer: int, num_frames: int) -> None:
    weights = _make_weights()
    waveform = noise(num_frames * SAMPLES_PER_FRAME)
    waveform[:, 1000:3000] *= 1e-6  # more than 120 dB below the maximum
    with torch.no_grad():
        states = _run_oracle(weights, waveform)
    frames = _load(_save(tmp_path, weights), layer)(waveform, torch.tensor([waveform.size(1)])).frames[0]
    assert frames.shape == (num_frames, DIM)
    assert_close(frames, states[layer], atol=1e-3)


def test_ignores_padding(tmp_path: Path) -> None:
    teacher = _load(_save(tmp_path))
    assert_ignores_padding(teacher, (23 * 640 + 500, 10000, 640, 639))
    assert (teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == (DIM, 25.0, 16000)


def test_the_identity_is_of_the_weights(tmp_path: Path) -> None:
    name = _load(_save(tmp_path)).name
    assert name.startswith("dasheng_")
    assert name.endswith(":3")
    changed = _make_weights()
    changed["norm.bias"][0] += 1
    assert _load(_save(tmp_path, changed)).name != name


def test_the_export_for_transformers_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {key: value for key, value in _make_weights().items() if not key.startswith("front_end")}
    exported = {f"encoder.{key}": value for key, value in weights.items()}
    save_file(exported | {"outputlayer.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    # It holds no `config`: the width tells the heads, of released models.
    with pytest.raises(TeacherError, match=r"width must be that of a released model \(\[768, .*\), but is 24"):
        _load(tmp_path)
    monkeypatch.setitem(dasheng._NUM_HEADS, DIM, HEADS)
    waveform, lengths = noise(7000), torch.tensor([7000])
    frames = _load(_save(tmp_path))(waveform, lengths).frames
    assert torch.equal(_load(tmp_path)(waveform, lengths).frames, frames)


def _drop(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _drop("patch_embed.proj.weight"),
            "must hold the weights of a Dasheng model, but lacks 'patch_embed.proj.weight'",
        ),
        (
            _drop("blocks.1.norm1.bias"),
            r"must hold the weights of a Dasheng model, but does not: .*blocks.1.norm1.bias",
        ),
    ],
)
def test_load_raises_error_when_weights_are_missing(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    weights = _make_weights()
    change(weights)
    with pytest.raises(TeacherError, match=message) as info:
        _load(_save(tmp_path, weights))
    assert "\n" not in str(info.value)


def test_load_raises_error_when_the_file_is_missing_damaged_or_unsafe(tmp_path: Path) -> None:
    path = _save(tmp_path)
    with pytest.raises(TeacherError, match=r"`layer` must be from 0 to 3, but is 4"):
        _load(path, 4)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(TeacherError, match=r"dasheng.pt: must be a complete Dasheng checkpoint, but is damaged"):
        _load(path)
    torch.save({"model": Path("code")}, path)
    with pytest.raises(TeacherError, match=r"dasheng.pt: must be a complete Dasheng checkpoint, but is damaged"):
        _load(path)
    with pytest.raises(TeacherError, match=r"no.pt: the Dasheng checkpoint cannot be read: No such file"):
        _load(tmp_path / "no.pt")
    with pytest.raises(TeacherError, match=r"`teacher.path` must be a checkpoint or a folder"):
        load_teacher(TeacherConfig(name="dasheng"), device=torch.device("cpu"))

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.models.wav2vec2 import Wav2Vec2Model, get_wav2vec2_model_hub
from fairseq2.nn import BatchLayout
from torch import Tensor

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

CARD = """
name: small_wav2vec2
model_family: wav2vec2
model_arch: {arch}
model_config:
  final_dim: 16
  quantized_dim: 16
  num_codebook_entries: 4
  encoder_config:
    model_dim: 32
    feature_dim: 16
    feature_extractor_layer_descs: [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2], [16, 2, 2]]
    pos_conv_kernel_size: 16
    pos_encoder_depth: {depth}
    num_pos_conv_groups: 2
    num_encoder_layers: 3
    num_encoder_attn_heads: 2
    ffn_inner_dim: 48
checkpoint: model.pt
"""


def _save(folder: Path, *, arch: str = "large_lv60k", depth: int = 1) -> Wav2Vec2Model:
    """Write a card with a small random model and return the model, which is the oracle."""
    (folder / "card.yaml").write_text(CARD.format(arch=arch, depth=depth))
    (folder / "model.pt").touch()
    torch.manual_seed(0)
    config = get_wav2vec2_model_hub().get_arch_config(arch)
    encoder = config.encoder_config
    config.final_dim = config.quantized_dim = encoder.feature_dim = 16
    config.num_codebook_entries = 4
    encoder.model_dim, encoder.ffn_inner_dim = 32, 48
    encoder.feature_extractor_layer_descs = [(16, k, s) for _, k, s in encoder.feature_extractor_layer_descs]
    encoder.pos_conv_kernel_size, encoder.num_pos_conv_groups, encoder.pos_encoder_depth = 16, 2, depth
    encoder.num_encoder_layers, encoder.num_encoder_attn_heads = 3, 2
    model = get_wav2vec2_model_hub().create_new_model(config)
    torch.save(model.state_dict(), folder / "model.pt")

    return model.eval()


def _load(folder: Path, layer: int | None = None) -> Teacher:
    config = TeacherConfig(name="fairseq2_wav2vec2", path=str(folder / "card.yaml"), layer=layer)

    return load_teacher(config, device=torch.device("cpu"))


@torch.no_grad()
def _run(model: Wav2Vec2Model, waveform: Tensor) -> list[Tensor]:
    seqs, layout = model.encoder_frontend(waveform, BatchLayout.of(waveform))
    states = [seqs]

    def collect(layer_idx: int, layer_output: Tensor, layer_output_layout: BatchLayout, num_layers: int) -> bool:
        states.append(layer_output)
        return True

    model.encoder.register_layer_hook(collect)
    states[-1] = model.encoder(seqs, layout)

    return states


@pytest.mark.parametrize(("arch", "depth"), [("large_lv60k", 1), ("base", 1), ("large_lv60k", 5)])
def test_ignores_padding(tmp_path: Path, arch: str, depth: int) -> None:
    _save(tmp_path, arch=arch, depth=depth)
    teacher = _load(tmp_path, 2)

    assert_ignores_padding(teacher, (16000, 7777, 400, 399))
    assert (teacher.name, teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == ("card:2", 32, 50.0, 16000)


@pytest.mark.parametrize("arch", ["large_lv60k", "base"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_layers_are_the_outputs_of_the_blocks(tmp_path: Path, arch: str, layer: int) -> None:
    model = _save(tmp_path, arch=arch)
    waveform = 3.0 * noise(8000) + 0.2
    scaled = waveform
    if arch == "large_lv60k":
        scaled = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    states = _run(model, scaled)

    assert_close(_load(tmp_path, layer)(waveform, torch.tensor([8000])).frames, states[layer], atol=1e-4)


def test_load_raises_error_when_the_card_is_unknown() -> None:
    config = TeacherConfig(name="fairseq2_wav2vec2", path="no_such_card")

    with pytest.raises(TeacherError, match=r"no_such_card: the fairseq2 asset cannot be loaded"):
        load_teacher(config, device=torch.device("cpu"))


def test_load_raises_error_when_the_checkpoint_is_damaged(tmp_path: Path) -> None:
    _save(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"damaged")

    with pytest.raises(TeacherError, match=r"card.yaml: the fairseq2 asset cannot be loaded"):
        _load(tmp_path)


def test_load_raises_error_when_there_is_no_such_layer(tmp_path: Path) -> None:
    _save(tmp_path)

    with pytest.raises(TeacherError, match=r"`layer` must be from 0 to 3, but is 4"):
        _load(tmp_path, 4)

# transformers is annotated in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    PretrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

LARGE_STYLE: dict[str, Any] = {**SMALL, "num_conv_pos_embeddings": 16, "feat_extract_norm": "layer"}
LARGE_STYLE["do_stable_layer_norm"] = True

BASE_STYLE: dict[str, Any] = {**SMALL, "num_conv_pos_embeddings": 16, "feat_extract_norm": "group"}

CONFIGS: dict[str, PretrainedConfig] = {
    "wavlm-large": WavLMConfig(**LARGE_STYLE),
    "wavlm-base": WavLMConfig(**BASE_STYLE),
    "hubert-large": HubertConfig(**LARGE_STYLE),
    "wav2vec2-base": Wav2Vec2Config(**BASE_STYLE),
    "wav2vec2-large": Wav2Vec2Config(**LARGE_STYLE),
    "data2vec-audio": Data2VecAudioConfig(**SMALL, conv_pos_kernel_size=5),
}


def _save(config: PretrainedConfig, folder: Path, *, normalize: bool = True) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True).save_pretrained(folder)

    return folder


def _load(folder: Path, layer: int | None = None) -> Teacher:
    return load_teacher(TeacherConfig(name="huggingface", path=str(folder), layer=layer), device=torch.device("cpu"))


@pytest.mark.parametrize("name", CONFIGS)
def test_ignores_padding(name: str, tmp_path: Path) -> None:
    teacher = _load(_save(CONFIGS[name], tmp_path / name), 2)

    assert_ignores_padding(teacher, (16000, 7777, 400, 399))
    assert (teacher.name, teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == (f"{name}:2", 32, 50.0, 16000)


@pytest.mark.parametrize("name", ["wavlm-large", "wavlm-base", "data2vec-audio"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_layers_are_the_hidden_states_of_the_whole_model(name: str, layer: int, tmp_path: Path) -> None:
    folder = _save(CONFIGS[name], tmp_path / name)
    waveform = 3.0 * noise(8000) + 0.2
    inputs = Wav2Vec2FeatureExtractor(do_normalize=True)(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True).hidden_states

    assert_close(_load(folder, layer)(waveform, torch.tensor([8000])).frames, states[layer], atol=1e-4)


def test_layer_below_the_last_is_the_residual_stream_before_the_final_norm(tmp_path: Path) -> None:
    folder = _save(CONFIGS["wavlm-large"], tmp_path / "wavlm-large")
    model = AutoModel.from_pretrained(folder).eval()
    states = []
    model.encoder.layers[1].register_forward_hook(lambda _, __, output: states.append(output[0]))
    teacher = _load(folder, 2)
    waveform = noise(8000)
    with torch.no_grad():
        model((waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt())

    assert_close(teacher(waveform, torch.tensor([8000])).frames, states[0], atol=1e-4)


def test_waveforms_are_taken_as_they_are_when_the_checkpoint_does_not_normalise(tmp_path: Path) -> None:
    folder = _save(CONFIGS["wav2vec2-base"], tmp_path / "base", normalize=False)
    waveform = noise(8000) + 0.2
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(waveform, output_hidden_states=True).hidden_states

    assert_close(_load(folder)(waveform, torch.tensor([8000])).frames, states[3], atol=1e-5)


def test_load_raises_error_when_weights_are_missing(tmp_path: Path) -> None:
    folder = _save(CONFIGS["wavlm-large"], tmp_path / "wavlm")
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(folder, state_dict={k: v for k, v in model.state_dict().items() if "layers.2" not in k})

    with pytest.raises(TeacherError, match=r"must hold all weights, but lacks \d+, such as .*layers.2"):
        _load(folder)


def test_load_raises_error_when_the_model_is_of_another_type(tmp_path: Path) -> None:
    AutoConfig.for_model("bert").save_pretrained(tmp_path)

    with pytest.raises(TeacherError, match=r"type must be one of data2vec-audio, .*wavlm, but is bert"):
        _load(tmp_path)


def test_load_raises_error_when_there_is_no_such_layer(tmp_path: Path) -> None:
    folder = _save(CONFIGS["hubert-large"], tmp_path)

    with pytest.raises(TeacherError, match=r"`layer` must be from 0 to 3, but is 4"):
        _load(folder, 4)


def test_load_raises_error_when_the_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"must be a transformers checkpoint .* failed: .*config.json"):
        _load(tmp_path)

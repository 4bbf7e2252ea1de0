from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch.nn import Module
from torchaudio.models import wav2vec2_model, wavlm_model
from torchaudio.pipelines import Wav2Vec2Bundle

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from spear_plugin.teachers.torchaudio import infer_parameters
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

CONVS = [(16, kernel, stride) for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True)]
NAMES = ("base", "large", "wavlm_base", "wavlm_large")


def _make_model(name: str) -> Module:
    torch.manual_seed(0)
    is_large = name.endswith("large")
    sizes: dict[str, Any] = {
        "extractor_mode": "layer_norm" if is_large else "group_norm", "extractor_conv_layer_config": CONVS,
        "extractor_conv_bias": is_large, "encoder_embed_dim": 128, "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4, "encoder_num_layers": 3, "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.1, "encoder_ff_interm_features": 48, "encoder_ff_interm_dropout": 0.1,
        "encoder_dropout": 0.1, "encoder_layer_norm_first": is_large, "encoder_layer_drop": 0.1, "aux_num_out": 5,
    }  # fmt: skip
    model: Module
    if name.startswith("wavlm"):
        model = wavlm_model(**sizes, encoder_num_buckets=32, encoder_max_distance=800)
    else:
        model = wav2vec2_model(**sizes)
    return model.eval()


def _save(name: str, folder: Path) -> Path:
    torch.save(_make_model(name).state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def _load(path: Path, layer: int | None = None) -> Teacher:
    return load_teacher(TeacherConfig(name="torchaudio", path=str(path), layer=layer), device=torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_ignores_padding(name: str, tmp_path: Path) -> None:
    teacher = _load(_save(name, tmp_path), 2)
    assert_ignores_padding(teacher, (16000, 7777, 400, 399))
    assert (teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == (128, 50.0, 16000)
    assert teacher.name.startswith("torchaudio_wavlm_" if "wavlm" in name else "torchaudio_wav2vec2_")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layers_are_those_of_the_model(name: str, layer: int, tmp_path: Path) -> None:
    model, waveform = _make_model(name), 3.0 * noise(8000) + 0.2
    scaled = torch.nn.functional.layer_norm(waveform, waveform.shape) if name.endswith("large") else waveform
    with torch.no_grad():
        states, _ = model.extract_features(scaled)  # type: ignore[operator]
        expected = states[layer - 1]
        if layer == 3 and name.endswith("large"):
            expected = model.encoder.transformer.layer_norm(expected)  # type: ignore[operator, union-attr]
    frames = _load(_save(name, tmp_path), layer)(waveform, torch.tensor([8000])).frames
    assert_close(frames, expected, atol=1e-3)


def test_layer_0_is_the_input_of_the_first_block(tmp_path: Path) -> None:
    model, waveform = _make_model("base"), noise(8000)
    inputs = []
    model.encoder.transformer.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))  # type: ignore[index, union-attr]
    with torch.no_grad():
        model(waveform)
    assert_close(_load(_save("base", tmp_path), 0)(waveform, torch.tensor([8000])).frames, inputs[0], atol=1e-5)


def _list_bundles() -> dict[str, Wav2Vec2Bundle]:
    pipelines = {name: getattr(torchaudio.pipelines, name) for name in dir(torchaudio.pipelines)}
    return {name: bundle for name, bundle in pipelines.items() if isinstance(bundle, Wav2Vec2Bundle)}


def test_the_shapes_tell_the_sizes_of_every_bundle() -> None:
    bundles = _list_bundles()
    assert len(bundles) >= 30
    # Models of the same sizes are made once.
    unique = {str(sorted(bundle._params.items())): bundle for bundle in bundles.values()}
    for bundle in unique.values():
        with torch.device("meta"):
            model = (wavlm_model if bundle._model_type == "WavLM" else wav2vec2_model)(**bundle._params)
        params = infer_parameters(model.state_dict())
        known = {key: value for key, value in bundle._params.items() if "drop" not in key and key != "aux_num_out"}
        assert params == known, bundle._path
        assert (params["extractor_mode"] == "layer_norm") == bundle._normalize_waveform, bundle._path


def test_load_raises_error_when_the_file_is_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(TeacherError, match=r"must hold the weights of a wav2vec 2.0, HuBERT or WavLM bundle .* lacks"):
        _load(path)
    path.write_bytes(b"damaged")
    with pytest.raises(TeacherError, match=r"model.pth: must be a complete torchaudio checkpoint, but is damaged"):
        _load(path)
    with pytest.raises(TeacherError, match=r"no.pth: the torchaudio checkpoint cannot be read: No such file"):
        _load(tmp_path / "no.pth")


def test_load_raises_error_when_there_is_no_such_layer_or_weight(tmp_path: Path) -> None:
    path = _save("large", tmp_path)
    with pytest.raises(TeacherError, match=r"`layer` must be from 0 to 3, but is 4"):
        _load(path, 4)
    state_dict = torch.load(path, weights_only=True)
    del state_dict["encoder.transformer.layers.1.attention.q_proj.bias"]
    torch.save(state_dict, path)
    with pytest.raises(TeacherError, match=r"must hold the weights of a torchaudio model, .* .*q_proj.bias"):
        _load(path)

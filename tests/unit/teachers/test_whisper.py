# transformers is annotated in parts only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise, write_ctranslate2

WINDOW = 30 * 16000


@pytest.fixture(scope="module")
def reference() -> WhisperModel:
    """A small random Whisper of transformers: the oracle."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=128, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model: WhisperModel = WhisperModel(config).eval()
    for parameter in model.encoder.parameters():
        parameter.data.normal_(0.0, 0.2)

    return model


@pytest.fixture(scope="module")
def model_file(reference: WhisperModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's encoder as CTranslate2 stores it."""
    path = tmp_path_factory.mktemp("whisper") / "model.bin"
    write_ctranslate2(path, "WhisperSpec", _to_ctranslate2(reference))

    return path


def _load(path: Path, layer: int) -> Teacher:
    return load_teacher(TeacherConfig(name="whisper", path=str(path), layer=layer), device=torch.device("cpu"))


def _run_reference(reference: WhisperModel, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
    extractor = WhisperFeatureExtractor()
    features = extractor(waveform[0].numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        states: tuple[torch.Tensor, ...] = reference.encoder(features, output_hidden_states=True).hidden_states

    return states


def test_first_layer_equals_that_of_the_input_padded_to_30_seconds(reference: WhisperModel, model_file: Path) -> None:
    waveform = noise(50123)
    output = _load(model_file, 0)(waveform, torch.tensor([50123]))

    assert output.frames.shape == (1, 156, 32)
    assert_close(output.frames, _run_reference(reference, waveform)[0][:, :156], atol=1e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_every_layer_equals_the_reference_when_the_utterance_lasts_30_seconds(
    reference: WhisperModel, model_file: Path, layer: int
) -> None:
    waveform = noise(WINDOW)
    waveform[:, -400:] = 0.0  # the reference mirrors the end of the input
    output = _load(model_file, layer)(waveform, torch.tensor([WINDOW]))

    assert output.frames.shape == (1, 1500, 32)
    assert_close(output.frames, _run_reference(reference, waveform)[layer], atol=1e-3)


def test_long_utterance_equals_its_windows_of_30_seconds(model_file: Path) -> None:
    teacher = _load(model_file, 2)
    waveform = noise(WINDOW + 8000)
    whole = teacher(waveform, torch.tensor([WINDOW + 8000]))
    parts = [teacher(part, torch.tensor([part.size(1)])).frames for part in torch.split(waveform, WINDOW, dim=1)]

    assert whole.lengths.tolist() == [1525]
    assert_close(whole.frames, torch.cat(parts, dim=1))


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_packaged_weights_ignore_padding(layer: int) -> None:
    teacher = load_teacher(TeacherConfig(layer=layer), device=torch.device("cpu"))

    assert_ignores_padding(teacher, (16000, 5119, 321, 319))
    assert teacher.name == f"whisper_tiny_en:{layer}"
    assert (teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == (384, 50.0, 16000)


def test_batch_with_an_utterance_of_several_windows_ignores_padding(model_file: Path) -> None:
    assert_ignores_padding(_load(model_file, 2), (WINDOW + 3200, 16000))


def test_default_layer_is_the_best_of_the_phone_probe() -> None:
    assert load_teacher(TeacherConfig(), device=torch.device("cpu")).name == "whisper_tiny_en:3"


def test_load_raises_error_when_there_is_no_such_layer(model_file: Path) -> None:
    with pytest.raises(TeacherError, match=r"whisper_[0-9a-f]{8}: `layer` must be from 0 to 2, but is 3"):
        _load(model_file, 3)


def test_load_raises_error_when_the_file_is_not_complete(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model_file.read_bytes()[:-1000])

    with pytest.raises(TeacherError, match=r"model.bin: must be a complete CTranslate2 model, but is not"):
        _load(path, 1)


def test_load_raises_error_when_the_model_is_of_another_kind(tmp_path: Path) -> None:
    write_ctranslate2(tmp_path / "model.bin", "TransformerSpec", {"a": np.zeros(2, np.float32)})

    with pytest.raises(TeacherError, match=r"must hold a Whisper model \(WhisperSpec\), but holds TransformerSpec"):
        _load(tmp_path, 1)


def _to_ctranslate2(reference: WhisperModel) -> dict[str, NDArray[Any]]:
    state = {key: value.numpy() for key, value in reference.encoder.state_dict().items()}
    state |= {key.replace("v_proj.bias", "k_proj.bias"): 0 * v for key, v in state.items() if "v_proj.bias" in key}
    renamed = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm"}
    for index in range(2):
        theirs, ours = f"layers.{index}", f"layer_{index}"
        renamed |= {
            f"{theirs}.self_attn_layer_norm": f"{ours}/self_attention/layer_norm",
            f"{theirs}.self_attn.out_proj": f"{ours}/self_attention/linear_1",
            f"{theirs}.final_layer_norm": f"{ours}/ffn/layer_norm",
            f"{theirs}.fc1": f"{ours}/ffn/linear_0",
            f"{theirs}.fc2": f"{ours}/ffn/linear_1",
        }

    arrays: dict[str, NDArray[Any]] = {"encoder/num_heads": np.array(2, np.int16)}
    for theirs, ours in renamed.items():
        kinds = ("gamma", "beta") if "norm" in ours else ("weight", "bias")
        for kind, parameter in zip(kinds, ("weight", "bias"), strict=True):
            arrays[f"encoder/{ours}/{kind}"] = state[f"{theirs}.{parameter}"]
    for index in range(2):
        for kind in ("weight", "bias"):
            parts = [state[f"layers.{index}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            arrays[f"encoder/layer_{index}/self_attention/linear_0/{kind}"] = np.concatenate(parts)
    arrays["encoder/position_encodings/encodings"] = state["embed_positions.weight"]
    arrays["decoder/layer_norm/gamma"] = np.ones(32, np.float16)

    return arrays

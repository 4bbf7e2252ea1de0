"""The whole model against the authors' code: released layout, features of two padded utterances, one training batch."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.models.utils.checkpoint import set_model_state
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from numpy.typing import NDArray
from torch import Tensor

from spear_plugin.models.spear import (
    SpearConfig,
    SpearFeatures,
    SpearModel,
    convert_spear_state_dict,
    create_spear_model,
    num_output_frames,
)
from spear_plugin.models.spear.masker import FbankMasks
from tests.common import GOLDEN_FOLDER, assert_close, load_golden, strip_prefix
from tests.parity.common import golden_step_config

BASE = load_golden("spear/fullsize_base")
BASE_DESCRIPTION: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spear" / "fullsize_base.json").read_text())
TRAINING = load_golden("spear/train_step")


def create_parameter(key: str, shape: list[int]) -> Tensor:
    """The rule of the golden files: standard normal numbers seeded by the key, scaled by the kind of parameter."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    x: NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
    if key.endswith("mask_emb"):
        scaled = x
    elif len(shape) >= 2:
        scaled = x * np.float32(0.7 / np.sqrt(np.prod(shape[1:])))
    elif key.endswith("bypass_scale"):
        scaled = np.clip(0.5 + 0.1 * x, 0.1, 0.9).astype(np.float32)
    else:
        scaled = x * np.float32(0.1 if key.endswith("downsample.bias") else 0.05)
    return torch.from_numpy(np.asarray(scaled))


def create_waveform(seed: int, num_samples: int) -> Tensor:
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(num_samples, dtype=np.float32).astype(float)
    t = np.arange(num_samples) / 16000
    tone = 0.1 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    return torch.from_numpy(0.05 * noise * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + tone).float()


@pytest.fixture(scope="module")
def base() -> SpearModel:
    state_dict: dict[str, object] = {}
    for line in (GOLDEN_FOLDER / "spear" / "state_dict_keys_base.txt").read_text().splitlines():
        key, shape = line.split("\t")
        sizes = [int(size) for size in shape.strip("()").split(",") if size]
        state_dict[key] = create_parameter(key, sizes)
    for key, (total, magnitude) in BASE_DESCRIPTION["param_checksums"].items():
        parameter = state_dict[key]
        assert isinstance(parameter, Tensor)
        assert parameter.double().sum().item() == pytest.approx(total)
        assert parameter.double().abs().sum().item() == pytest.approx(magnitude)
    config = SpearConfig(target_streams=[])
    with torch.device("meta"):
        model = create_spear_model(config)
    model.load_state_dict(convert_spear_state_dict(state_dict, config), strict=True, assign=True)
    return model.eval()


def assert_base_features(features: SpearFeatures, *, tolerance: float) -> None:
    lengths: list[int] = BASE["encoder_out_lens"].tolist()
    assert features.lengths.tolist() == lengths
    assert len(features.layers) == BASE_DESCRIPTION["n_hidden"]
    assert_close(features.layers[-1], features.last, atol=0, rtol=0)

    def compare(actual: Tensor, name: str, num_channels: int) -> None:
        for i, length in enumerate(lengths):
            valid = actual[i, :length]
            assert_close(valid[:, :num_channels], BASE[f"{name}.first{num_channels}"][i, :length], atol=tolerance)
            assert_close(valid.double().mean(dim=1), BASE[f"{name}.mean"][i, :length], atol=tolerance)
            assert_close(valid.double().std(dim=1, correction=0), BASE[f"{name}.std"][i, :length], atol=tolerance)

    compare(features.last, "encoder_out", 16)
    for i, layer in enumerate(features.layers):
        compare(layer, f"hidden.{i}", 4)


@torch.inference_mode()
def test_base_features_of_waveforms_equal_the_authors(base: SpearModel) -> None:
    lengths = BASE["wav_lens"]
    waveforms = torch.zeros((2, int(lengths.max())))
    for i, seed in enumerate(BASE_DESCRIPTION["wave_seeds"]):
        waveforms[i, : lengths[i]] = create_waveform(seed, int(lengths[i]))
    assert_close(waveforms[:, :64], BASE["wav_first64"])
    features = base.extract_features(waveforms, lengths, reference_padding=True)
    assert_base_features(features, tolerance=2e-3)
    assert [num_output_frames(int(n), SpearConfig()) for n in lengths] == features.lengths.tolist()


@torch.inference_mode()
def test_base_features_of_fbank_equal_the_authors(base: SpearModel) -> None:
    features = base.extract_features_from_fbank(BASE["fbank"], BASE["fbank_lens"], reference_padding=True)
    assert_base_features(features, tolerance=1e-5)


def create_training_model(*, loss_on_padding: bool) -> SpearModel:
    config = golden_step_config(loss_on_padding=loss_on_padding)
    model = create_spear_model(config)
    state_dict = convert_spear_state_dict(strip_prefix("param.", TRAINING), config)
    set_model_state(model, ((k, v) for k, v in state_dict.items() if isinstance(v, Tensor)), NOOP_PROGRESS_REPORTER)
    # What acts only in training is switched off in the golden run.
    return model.eval()


def predict_training_codes(model: SpearModel) -> Tensor:
    masks = FbankMasks(time=TRAINING["time_mask"].bool(), channel=TRAINING["channel_mask"].bool())
    codes = {"speech": TRAINING["codes_speech"], "audio": TRAINING["codes_audio"]}
    return model.predict_codes(TRAINING["fbank"], TRAINING["fbank_lens"], masks, codes, TRAINING["task"] - 1).loss


def test_masked_input_equals_the_authors() -> None:
    masks = FbankMasks(time=TRAINING["time_mask"].bool(), channel=TRAINING["channel_mask"].bool())
    assert_close(masks.apply(TRAINING["fbank"], TRAINING["param.mask_emb"]), TRAINING["fbank_masked"], atol=0, rtol=0)


def test_loss_of_a_batch_and_gradients_of_its_heads_equal_the_authors() -> None:
    model = create_training_model(loss_on_padding=True)
    loss = predict_training_codes(model)
    assert_close(loss, TRAINING["loss"], rtol=1e-5)
    loss.backward()
    for index, name in enumerate(("speech", "audio")):
        for ours, theirs in (("weight", "linear2b_weight"), ("bias", "linear2_bias")):
            gradient = model.get_parameter(f"heads.{name}.{ours}").grad
            assert gradient is not None
            assert_close(gradient, TRAINING[f"grad.codebook_loss_heads.{index}.{theirs}"], atol=1e-4, rtol=1e-4)


def test_frames_on_padding_are_left_out_of_the_loss_by_default() -> None:
    assert predict_training_codes(create_training_model(loss_on_padding=False)) < 0.999 * TRAINING["loss"]

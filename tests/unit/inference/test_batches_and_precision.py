"""What holds for features of both families: batches of mixed lengths, half precision, compilation."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from spear_plugin.inference.families import create_feature_reader
from spear_plugin.models.spear import SpearModel, compile_spear
from spear_plugin.models.spidr import SpidrModel, compile_spidr, standardize_waveforms
from tests.common import assert_close
from tests.unit.inference.makers import FAMILIES, create_model, create_recordings, tensors_of

LENGTHS = [32_000, 20_111, 8_000, 31_990]

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def assert_near(model: SpearModel | SpidrModel, features: object, expected: object, lengths: Tensor) -> None:
    """Assert that the valid frames of all tensors are finite and within 3 % of the expected ones."""
    for name, tensor in tensors_of(features).items():
        reference = tensors_of(expected)[name]
        for row, length in enumerate(count_frames(model, name, lengths)):
            ours, theirs = tensor[row, :length].float(), reference[row, :length]
            assert ours.isfinite().all(), name
            assert (ours - theirs).norm() < 0.03 * theirs.norm(), name


def count_frames(model: SpearModel | SpidrModel, name: str, lengths: Tensor) -> list[int]:
    grid = create_feature_reader(model).grid
    factor = model.config.zipformer.output_downsampling_factor if isinstance(model, SpearModel) else 1
    return [-(-grid.num_frames(n) // (factor if name == "last" else 1)) for n in lengths.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_an_utterance_has_its_own_features_in_any_batch_whatever_lies_beyond_it(family: str) -> None:
    model = create_model(family)
    waveforms, lengths = create_recordings(LENGTHS)
    together = tensors_of(model.extract_features(waveforms, lengths))
    for row, length in enumerate(LENGTHS):
        alone = model.extract_features(waveforms[row : row + 1, :length], lengths[row : row + 1])
        for name, tensor in tensors_of(alone).items():
            num_frames = count_frames(model, name, lengths)[row]
            assert tensor.size(1) == num_frames
            assert_close(together[name][row, :num_frames], tensor[0], atol=1e-4, rtol=0.0)


@HALVES
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_weights_in_half_precision_give_nearly_the_same_features_of_float_waveforms(
    family: str, dtype: torch.dtype
) -> None:
    model = create_model(family)
    waveforms, lengths = create_recordings(LENGTHS)
    expected = model.extract_features(waveforms, lengths)
    features = model.to(dtype).extract_features(waveforms, lengths)
    assert {tensor.dtype for tensor in tensors_of(features).values()} == {dtype}
    assert_near(model, features, expected, lengths)


@HALVES
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_autocast_gives_nearly_the_same_features(family: str, dtype: torch.dtype) -> None:
    model = create_model(family)
    waveforms, lengths = create_recordings(LENGTHS)
    expected = model.extract_features(waveforms, lengths)
    with torch.autocast("cpu", dtype):
        features = model.extract_features(waveforms, lengths)
    assert_near(model, features, expected, lengths)


@HALVES
@torch.inference_mode()
def test_silence_and_full_scale_have_finite_features_in_half_precision(dtype: torch.dtype) -> None:
    waveforms = torch.zeros(2, 16_000)
    waveforms[1] = torch.sign(torch.sin(torch.arange(16_000) / 9.0))
    lengths = torch.tensor([16_000, 16_000])
    for family in ("spear", "spidr"):
        model = create_model(family).to(dtype)
        inputs = waveforms if family == "spear" else standardize_waveforms(waveforms, lengths)
        for name, tensor in tensors_of(model.extract_features(inputs, lengths)).items():
            assert tensor.isfinite().all(), (family, name)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("family", ["spear", "spidr"])
@torch.inference_mode()
def test_compiled_parts_give_the_same_features_and_are_not_compiled_again_for_other_lengths(family: str) -> None:
    model = create_model(family)
    compiled, counter = deepcopy(model), CompileCounter()
    if isinstance(compiled, SpearModel):
        compile_spear(compiled, backend=counter, dynamic=True)
    else:
        compile_spidr(compiled, backend=counter, dynamic=True)
    counts = []
    for sizes in ([16_000, 9_000], [20_111, 31_003], [17_001, 16_000, 8_000], [12_345, 12_000]):
        waveforms, lengths = create_recordings(sizes)
        expected = tensors_of(model.extract_features(waveforms, lengths))
        for name, tensor in tensors_of(compiled.extract_features(waveforms, lengths)).items():
            assert_close(tensor, expected[name], atol=1e-4, rtol=0.0)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts == [counts[0]] * len(counts)

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention

from spear_plugin.inference import extract_features_in_chunks
from spear_plugin.inference.chunks import Chunk, ChunkPlan, FrameGrid
from spear_plugin.inference.families import create_feature_reader
from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spidr import SpidrModel, encoder
from spear_plugin.models.zipformer.attention import RelativeAttentionWeights
from tests.common import assert_close, assert_equal
from tests.unit.inference.makers import FAMILIES, create_model, create_recordings, tensors_of

REACH = 3
"""Frames to either side that limited attention sees, in each use and at the rate of its stack."""

# The small SPEAR's two layers at 25 Hz reach 2 x 2 x (3 x 3 + 2 x 7) frames, the one at 50 Hz half of one of them, and
# front end and down-sampling a few more: 2.5 s. SpidR's convolutions and three layers reach 19 frames.
# Odd numbers of frames, which the down-sampling of SPEAR must not see.
LIMITED: dict[str, Any] = {"chunk_seconds": 7.02, "overlap_seconds": 5.64}


def band(num_frames: int) -> Tensor:
    positions = torch.arange(num_frames)
    return (positions[:, None] - positions).abs() <= REACH


def limit_attention(model: SpearModel | SpidrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every frame attend to its neighbours alone."""

    def limit(_module: Module, _inputs: Any, weights: Tensor) -> Tensor:
        limited = weights * band(weights.size(-1))
        return limited / limited.sum(dim=-1, keepdim=True).clamp_min(1e-20)

    def attend(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
        mask = band(q.size(2)) if attn_mask is None else band(q.size(2)) & attn_mask
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)

    for module in model.modules():
        if isinstance(module, RelativeAttentionWeights):
            module.register_forward_hook(limit)
    monkeypatch.setattr(encoder, "scaled_dot_product_attention", attend)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_one_pass_if_attention_reaches_no_further_than_an_overlap(
    family: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(family)
    limit_attention(model, monkeypatch)
    # The third is one chunk; the second ends in the middle of a frame.
    waveforms, lengths = create_recordings([240_000, 123_457, 40_000])
    expected = model.extract_features(waveforms, lengths)
    features = extract_features_in_chunks(model, waveforms, lengths, batch_size=batch_size, **LIMITED)
    assert_equal(features.lengths, expected.lengths)
    ours, theirs = tensors_of(features), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    grid = create_feature_reader(model).grid
    for name, tensor in ours.items():
        # Layers are at 50 Hz where the output is at 25 Hz.
        factor = 2 if family == "spear_25hz" and name == "last" else 1
        for row, num_samples in enumerate(lengths.tolist()):
            num_frames = -(-grid.num_frames(num_samples) // factor)
            assert_close(tensor[row, :num_frames], theirs[name][row, :num_frames], atol=1e-5)
    assert not ours["layer_0"][2, 130:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording_that_is_no_longer_than_a_chunk_has_the_bits_of_one_pass(family: str) -> None:
    model = create_model(family)
    waveforms, lengths = create_recordings([64_000])
    expected = model.extract_features(waveforms, lengths)
    features = extract_features_in_chunks(model, waveforms, lengths, chunk_seconds=4.0, overlap_seconds=1.0)
    for name, tensor in tensors_of(features).items():
        assert_equal(tensor, tensors_of(expected)[name])


def test_only_layers_that_are_wanted_are_kept() -> None:
    waveforms, lengths = create_recordings([48_000])
    spear, spidr = create_model("spear"), create_model("spidr")
    assert isinstance(spear, SpearModel)
    options: dict[str, Any] = {"chunk_seconds": 2.0, "overlap_seconds": 0.5}
    everything = extract_features_in_chunks(spear, waveforms, lengths, **options)
    some = extract_features_in_chunks(spear, waveforms, lengths, layers=(2, 0), **options)
    assert len(some.layers) == 2
    assert_equal(some.layers[0], everything.layers[2])
    assert_equal(some.layers[1], everything.layers[0])
    none = extract_features_in_chunks(spear, waveforms, lengths, layers=(), **options)
    assert none.layers == []
    assert_equal(none.last, everything.last)
    assert len(extract_features_in_chunks(spidr, waveforms, lengths, layers=[1], **options).layers) == 1
    with pytest.raises(ValueError, match=r"`layers` must be from 0 to 2, but are \[3\] instead"):
        extract_features_in_chunks(spear, waveforms, lengths, layers=[3], **options)


GRID = FrameGrid(sample_rate=16_000, hop=320, stride=1280, num_lost=4, num_frames=lambda n: max(0, n // 320 - 4))


def test_every_frame_is_taken_from_one_chunk_that_has_its_context() -> None:
    plan = ChunkPlan.create(GRID, chunk_seconds=2.0, overlap_seconds=0.64)
    assert (plan.size, plan.context) == (32_000, 5_120)
    for num_samples in range(1_000, 200_000, 777):
        chunks = plan.cut(num_samples)
        num_frames = GRID.num_frames(num_samples)
        taken = [frame for chunk in chunks for frame in range(chunk.first_frame, chunk.last_frame)]
        assert taken == list(range(num_frames))
        for chunk in chunks:
            assert chunk.start % GRID.stride == 0
            assert chunk.first_frame * GRID.hop % GRID.stride == 0
            assert chunk.stop - chunk.start <= plan.size
            assert chunk.start == 0 or chunk.first_frame * GRID.hop - chunk.start >= plan.context
            assert chunk.stop == num_samples or chunk.stop - chunk.last_frame * GRID.hop >= plan.context


def test_the_last_chunk_overlaps_more_rather_than_being_short() -> None:
    plan = ChunkPlan.create(GRID, chunk_seconds=2.0, overlap_seconds=0.64)
    first, last = plan.cut(35_000)
    assert first == Chunk(start=0, stop=32_000, first_frame=0, last_frame=56)
    assert last == Chunk(start=3_840, stop=35_000, first_frame=56, last_frame=105)


def test_a_recording_too_short_for_a_frame_has_none_beside_others_and_alone_is_refused() -> None:
    model = create_model("spear")
    waveforms, lengths = create_recordings([16_000, 1_000])
    features = extract_features_in_chunks(model, waveforms, lengths, chunk_seconds=2.0, overlap_seconds=0.5)
    assert features.lengths.tolist() == [46, 0]
    assert not tensors_of(features)["last"][1].any()
    with pytest.raises(ValueError, match=r"`lengths` must have one that is long enough .*at most 1000 samples"):
        extract_features_in_chunks(model, waveforms[:, :1000], lengths[1:])


@pytest.mark.parametrize(
    ("chunk_seconds", "overlap_seconds", "message"),
    [
        (2.0, 0.0, "`overlap_seconds` must be at least 0.16 for this model, but is 0 instead"),
        (0.9, 1.0, "`chunk_seconds` must be at least 1 with an overlap of 1 s, but is 0.9 instead"),
        (-1.0, 0.5, "`chunk_seconds` must be at least"),
    ],
)
def test_chunks_that_cannot_be_are_refused_in_one_line(
    chunk_seconds: float, overlap_seconds: float, message: str
) -> None:
    waveforms, lengths = create_recordings([16_000])
    with pytest.raises(ValueError, match=message) as caught:
        extract_features_in_chunks(
            create_model("spear"), waveforms, lengths, chunk_seconds=chunk_seconds, overlap_seconds=overlap_seconds
        )
    assert "\n" not in str(caught.value)

"""The front end without weights. The reference is torchaudio's, recording by recording, windows within it alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from spear_plugin.inference.programs import FeatureProgram, export_program
from spear_plugin.models.spidr import create_frame_geometry, create_spidr_model, spidr_timing
from spear_plugin.models.spidr.log_mel import LogMelExtractor
from tests.common import assert_close, assert_equal
from tests.unit.models.spidr.makers import create_batch, create_small_model, small_config

CONFIG = small_config(front_end="log_mel")
LENGTHS = [16000, 9000, 15990]


def compute_reference(waveform: Tensor) -> Tensor:
    spectra = fbank(waveform[None], num_mel_bins=128, dither=0.0, high_freq=-400.0, energy_floor=1e-10)
    num_frames = len(spectra) // 2
    return (torch.cat([spectra[: 2 * num_frames : 2], spectra[1 : 2 * num_frames : 2]], dim=1) + 2.0) / 4.0


@pytest.mark.parametrize("num_samples", [560, 879, 880, 16000])
def test_frames_are_pairs_of_log_mel_spectra(num_samples: int) -> None:
    waveform = torch.randn(num_samples)
    frames = LogMelExtractor()(waveform[None])
    assert frames.shape == (1, create_frame_geometry(CONFIG).num_frames(num_samples), 256)
    assert_close(frames[0], compute_reference(waveform), atol=1e-4)


def test_a_frame_is_centred_where_its_timing_says() -> None:
    timing = spidr_timing(create_frame_geometry(CONFIG))
    waveform = torch.zeros(1, 16000)
    waveform[0, round(16000 * (timing.first_centre + 20 / timing.rate_hz))] = 100.0
    # Both spectra of the frame hear a click in the middle between them.
    assert LogMelExtractor()(waveform)[0].reshape(-1, 2, 128).mean(dim=2).min(dim=1).values.argmax() == 20


def test_there_is_nothing_to_train_before_the_projection() -> None:
    model = create_small_model(CONFIG)
    assert not model.feature_extractor.state_dict()
    assert {name for name in model.state_dict() if name.startswith("feature_")} == {
        "feature_projection.projection.weight",
        "feature_projection.projection.bias",
    }


@torch.no_grad()
def test_spectra_stay_in_single_precision_whatever_the_model_is_in() -> None:
    waveforms = torch.randn(1, 4000)
    expected = LogMelExtractor()(waveforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(LogMelExtractor()(waveforms), expected)
    model = create_small_model(CONFIG).eval().to(torch.bfloat16)
    assert_equal(model.feature_extractor(waveforms), expected)
    assert model.extract_features(waveforms, None).layers[0].dtype == torch.bfloat16


def test_a_model_learns_on_one_batch_and_freezes_its_projection() -> None:
    model, batch = create_small_model(CONFIG), create_batch(LENGTHS, config=CONFIG)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for step in range(1, 16):
        losses.append(batch.train(model, optimizer, step))
        is_frozen = step >= CONFIG.freeze_step
        assert model.feature_projection.projection.weight.requires_grad is not is_frozen
    assert losses[-1] < 0.9 * losses[0]


def test_a_model_made_without_memory_computes_like_any_other() -> None:
    with torch.device("meta"):
        model = create_spidr_model(CONFIG)
    assert model.to_empty(device="cpu").feature_extractor(torch.randn(1, 1600)).isfinite().all()


@torch.no_grad()
def test_a_program_for_other_runtimes_takes_recordings_of_any_length() -> None:
    program = FeatureProgram(create_small_model(CONFIG).eval(), layers=[1]).eval()
    graph = export_program(program).module()
    for lengths in ([17000, 9000], [1701]):
        batch = create_batch(lengths, config=CONFIG)
        for mine, expected in zip(
            graph(batch.waveforms, batch.lengths), program(batch.waveforms, batch.lengths), strict=True
        ):
            assert_close(mine, expected, atol=1e-4)

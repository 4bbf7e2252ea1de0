from __future__ import annotations

import math
import random

import pytest
import torch
from torch._subclasses import FakeTensorMode

from spear_plugin.models.spear import DOMAINS, SpearConfig, create_spear_model, num_output_frames
from spear_plugin.models.zipformer import RegularizationConfig, attention, forced_regularization, zipformer_tiny
from spear_plugin.nn import gradients, regularizers
from tests.common import assert_close
from tests.unit.models.spear.makers import create_batch, create_small_model, small_config


@pytest.mark.parametrize("lengths", [[16000] * 3, [16000, 9000, 4000]], ids=["equal", "mixed"])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_step_reaches_every_parameter(lengths: list[int], factor: int) -> None:
    model = create_small_model(output_downsampling_factor=factor)
    batch = create_batch(lengths)
    output = model(batch.waveforms, batch.lengths, batch.codes, batch.domains)
    output.loss.backward()
    assert output.loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert set(output.streams) == {"speech", "audio"}


def test_a_step_reaches_every_parameter_while_branches_and_layers_are_skipped() -> None:
    model = create_small_model()
    model.set_batch_count(0.0)
    batch = create_batch([8000, 4000])
    for _ in range(6):
        model.zero_grad()
        batch.loss_of(model).backward()
        # One without gradient would stop a data parallel run.
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_even_scores_give_the_loss_of_chance_for_each_frame() -> None:
    model = create_small_model()
    with torch.no_grad():
        model.get_parameter("heads.speech.weight").zero_()
    batch = create_batch([16000] * 4)
    speech = model(batch.waveforms, batch.lengths, batch.codes, batch.domains).streams["speech"]
    num_frames = 4 * num_output_frames(16000, SpearConfig())
    assert int((speech.num_masked + speech.num_unmasked).sum()) == 16 * num_frames
    assert_close(speech.loss.sum(), torch.tensor(num_frames * math.log(256)))


def test_targets_beyond_an_utterance_are_left_out() -> None:
    model = create_small_model()
    batch = create_batch([16000, 4000])
    statistics = model(batch.waveforms, batch.lengths, batch.codes, batch.domains).streams["audio"]
    # 4,000 samples have 6 codes at 25 Hz, or 12 repeated, but 9 encoder frames.
    assert int((statistics.num_masked + statistics.num_unmasked).sum()) == 8 * 9


# The weights of the two streams by domain, (speech, audio) each: SPEAR's loss and those that it was compared with.
DUAL_DOMAIN_LOSSES = {
    "asymmetric": {"speech": (1.0, 1.0), "audio": (0.0, 0.1)},
    "joint": {"speech": (1.0, 1.0), "audio": (0.1, 0.1)},
    "disjoint": {"speech": (1.0, 0.0), "audio": (0.0, 0.25)},
}


@pytest.mark.parametrize("kind", DUAL_DOMAIN_LOSSES)
def test_domain_weights_decide_which_stream_counts(kind: str) -> None:
    config = small_config()
    for stream in config.target_streams:
        stream.weights = dict(zip(DOMAINS, DUAL_DOMAIN_LOSSES[kind][stream.name], strict=True))
    model = create_spear_model(config).eval()
    batch = create_batch([8000, 8000])
    batch.codes["audio"][0] = 7  # speech has these targets too
    output = model(batch.waveforms, batch.lengths, batch.codes, batch.domains)
    terms = [torch.tensor(DUAL_DOMAIN_LOSSES[kind][name]) * stream.loss for name, stream in output.streams.items()]
    assert min(float(stream.loss.min()) for stream in output.streams.values()) > 1.0
    assert_close(output.loss, torch.stack(terms).sum())


def test_a_stream_without_codes_takes_part_with_a_zero_gradient() -> None:
    model = create_small_model()
    batch = create_batch([8000, 8000])
    del batch.codes["audio"]
    batch.loss_of(model).backward()
    gradient = model.get_parameter("heads.audio.weight").grad
    assert gradient is not None
    assert not gradient.any()


def test_masks_are_drawn_in_eval_mode_too_and_repeat_with_the_seed() -> None:
    model = create_small_model().eval()
    batch = create_batch([16000, 9000])
    torch.manual_seed(3)
    first, second = batch.loss_of(model), batch.loss_of(model)
    torch.manual_seed(3)
    assert torch.equal(first, batch.loss_of(model))
    assert not torch.equal(first, second)


def test_features_are_not_masked() -> None:
    model = create_small_model().eval()
    batch = create_batch([16000])
    first = model.extract_features(batch.waveforms, batch.lengths)
    with torch.no_grad():
        model.mask_emb.fill_(100.0)
    assert torch.equal(first.last, model.extract_features(batch.waveforms, batch.lengths).last)


@torch.inference_mode()
def test_padded_utterances_have_the_features_that_they_have_alone() -> None:
    torch.manual_seed(0)
    config = SpearConfig(zipformer=zipformer_tiny())
    model = create_spear_model(config).eval()
    batch = create_batch([32000, 20111, 8000, 1360])
    together = model.extract_features(batch.waveforms, batch.lengths)
    assert len(together.layers) == sum(config.zipformer.num_layers)
    for i, length in enumerate(batch.lengths.tolist()):
        alone = model.extract_features(batch.waveforms[i : i + 1, :length], batch.lengths[i : i + 1])
        num_frames = num_output_frames(length, config)
        assert [num_frames] == alone.lengths.tolist() == together.lengths[i : i + 1].tolist()
        assert_close(alone.last[0], together.last[i, :num_frames], atol=1e-4)
        for layer, padded_layer in zip(alone.layers, together.layers, strict=True):
            assert_close(layer[0], padded_layer[i, :num_frames], atol=1e-4)


@torch.inference_mode()
def test_reference_padding_changes_the_features_of_padded_utterances_only() -> None:
    model = create_small_model().eval()
    batch = create_batch([16000, 9000])
    ours = model.extract_features(batch.waveforms, batch.lengths)
    theirs = model.extract_features(batch.waveforms, batch.lengths, reference_padding=True)
    num_frames = int(ours.lengths[1])
    assert_close(ours.last[0], theirs.last[0])
    assert not torch.allclose(ours.last[1, :num_frames], theirs.last[1, :num_frames], atol=1e-4)


@torch.inference_mode()
def test_output_downsampling_halves_the_last_features() -> None:
    model = create_small_model(output_downsampling_factor=2).eval()
    batch = create_batch([16000, 9000])
    features = model.extract_features(batch.waveforms, batch.lengths)
    config = small_config(output_downsampling_factor=2)
    assert features.lengths.tolist() == [num_output_frames(n, config) for n in (16000, 9000)]
    assert (features.last.size(1), features.layers[0].size(1)) == (23, 46)


def test_bfloat16_autocast_changes_the_loss_little() -> None:
    model = create_small_model().eval()
    batch = create_batch([16000, 9000])
    torch.manual_seed(4)
    expected = batch.loss_of(model)
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.loss_of(model)
    loss.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=0.01)


def test_a_model_in_bfloat16_takes_float_waveforms() -> None:
    model = create_small_model().to(torch.bfloat16)
    batch = create_batch([16000, 9000])
    assert batch.loss_of(model).isfinite()
    assert model.extract_features(batch.waveforms, batch.lengths).last.dtype == torch.bfloat16


@pytest.mark.parametrize("regularization", [RegularizationConfig(), forced_regularization()], ids=["usual", "forced"])
def test_a_step_reads_no_value_back_from_the_device(
    regularization: RegularizationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    config.zipformer.regularization = regularization
    model = create_spear_model(config)
    batch = create_batch([16000, 9000])
    batch.loss_of(model)  # fills the cache of constants with real tensors
    # The one place that reads values of tensors on the CPU, and draws of the host, which are tensors too
    monkeypatch.setattr(regularizers, "is_readable", lambda _: False)
    for module in (gradients, regularizers, attention):
        monkeypatch.setattr(module, "draw_uniform", random.Random(0).random)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for step in range(0, 60, 10):
            model.set_batch_count(200.0 * step)
            # A fake tensor has no values: reading one back, as a synchronisation does, raises an error.
            batch.loss_of(model).backward()


def test_codes_that_do_not_fit_the_heads_raise_an_error() -> None:
    model = create_small_model()
    batch = create_batch([8000])
    with pytest.raises(ValueError, match=r"`codes\['audio'\]` must be of shape \(N, C, 8\), but has the shape"):
        model(batch.waveforms, batch.lengths, {"audio": batch.codes["speech"]}, batch.domains)
    with pytest.raises(ValueError, match=r"the model's target streams \(speech, audio\), but has 'music'"):
        model(batch.waveforms, batch.lengths, {"music": batch.codes["speech"]}, batch.domains)


def test_a_model_without_heads_predicts_nothing() -> None:
    config = small_config()
    config.target_streams = []
    batch = create_batch([8000])
    with pytest.raises(ValueError, match="has no `target_streams`"):
        batch.loss_of(create_spear_model(config))

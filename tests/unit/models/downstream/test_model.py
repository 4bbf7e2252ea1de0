from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fairseq2.nn.utils.module import reset_non_persistent_buffers, reset_parameters, to_empty
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from torch import Tensor

from spear_plugin.models.downstream import (
    CtcConfig,
    CtcModel,
    EncoderConfig,
    SpecAugmentConfig,
    TaggingConfig,
    create_ctc_model,
    create_tagging_model,
    num_encoder_frames,
)
from spear_plugin.models.downstream.augmentation import SpecAugmentation
from spear_plugin.models.downstream.config import LayerMode
from tests.common import assert_close, assert_equal
from tests.unit.models.downstream.makers import ENCODERS, create_waveforms

FAMILIES = sorted(ENCODERS)
LAST_COMBINER = "encoder.model.encoder.encoders.1.out_combiner"


def create_ctc(family: str, *, layers: LayerMode = "last", augment: SpecAugmentConfig | None = None) -> CtcModel:
    torch.manual_seed(0)
    config = CtcConfig(encoder=ENCODERS[family], layers=layers, spec_augment=augment, vocabulary_size=7, dropout_p=0.0)
    return create_ctc_model(config)


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_utterance_is_recognized_in_a_padded_batch_as_alone(family: str, layers: LayerMode) -> None:
    model = create_ctc(family, layers=layers).eval()
    waveforms, lengths = create_waveforms(16_000, 9_000)
    output = model(waveforms, lengths)
    alone = model(waveforms[1:, :9_000], lengths[1:])
    num_frames = num_encoder_frames(9_000, ENCODERS[family])
    assert alone.lengths.tolist() == [num_frames]
    assert output.lengths.tolist() == [num_encoder_frames(16_000, ENCODERS[family]), num_frames]
    assert_close(output.log_probs[1, :num_frames], alone.log_probs[0, :num_frames], atol=1e-4)
    assert_close(output.log_probs.exp().sum(dim=2), torch.ones(output.log_probs.shape[:2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_tags_of_an_utterance_in_a_padded_batch_are_those_of_it_alone(family: str) -> None:
    torch.manual_seed(0)
    model = create_tagging_model(TaggingConfig(encoder=ENCODERS[family], labels=["a", "b", "c"])).eval()
    waveforms, lengths = create_waveforms(16_000, 9_000)
    logits = model(waveforms, lengths)
    assert logits.shape == (2, 3)
    assert_close(logits[1:], model(waveforms[1:, :9_000], lengths[1:]), atol=1e-4)


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_parameters_that_require_a_gradient_get_one(family: str, layers: LayerMode) -> None:
    model = create_ctc(family, layers=layers, augment=SpecAugmentConfig())
    model.requires_grad_(True)  # as fairseq2 does before training
    model(*create_waveforms(16_000, 9_000)).log_probs[:, :, 1].sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # Layers are read before the combination that follows a stack at a lower rate, here the last one.
    assert missing == ([f"{LAST_COMBINER}.bypass_scale"] if (family, layers) == ("spear", "weighted") else [])
    assert sum(p.requires_grad for p in model.parameters()) >= 2


def test_the_sum_of_layers_begins_as_their_mean_and_follows_its_weights() -> None:
    model = create_ctc("spear", layers="weighted").eval()
    waveforms, lengths = create_waveforms(16_000)
    layers = torch.stack(model.encoder(waveforms, lengths).layers)
    assert_close(model.encode(waveforms, lengths)[0], layers.mean(dim=0))
    assert model.layer_sum is not None
    with torch.no_grad():
        model.layer_sum.weights[1] = 50.0
    assert_close(model.encode(waveforms, lengths)[0], layers[1])


def test_a_frozen_encoder_has_no_gradients_and_no_dropout_whatever_is_called() -> None:
    model = create_ctc("spear")
    model.freeze_encoder(True)
    for _ in range(2):
        model(*create_waveforms(9_000)).log_probs[:, :, 1].sum().backward()
        assert all(p.grad is None for p in model.encoder.parameters())
        assert model.projection.weight.grad is not None
        assert not model.encoder.training
        model.eval()
        model.train()
        model.requires_grad_(True)
    model.freeze_encoder(False)
    assert model.encoder.training
    model(*create_waveforms(9_000)).log_probs[:, :, 1].sum().backward()
    assert all(p.grad is not None for p in model.encoder.trained_parameters())


def test_freezing_as_often_as_a_trainer_does_keeps_gradients_of_an_encoder_that_is_trained() -> None:
    model = create_ctc("spear")
    model(*create_waveforms(9_000)).log_probs[:, :, 1].sum().backward()
    model.freeze_encoder(False)
    assert all(p.grad is not None for p in model.encoder.trained_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_act_in_training_only_and_follow_torchs_generator(family: str) -> None:
    augment = SpecAugmentConfig(num_time_masks=2, max_time_frames=40, max_time_share=1.0)
    model, plain = create_ctc(family, augment=augment).eval(), create_ctc(family).eval()
    waveforms, lengths = create_waveforms(16_000, 9_000)
    assert_equal(model(waveforms, lengths).log_probs, plain(waveforms, lengths).log_probs)
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        model.encoder.augmentation.train()  # type: ignore[union-attr]
        outputs.append(model(waveforms, lengths).log_probs)
    assert_equal(*outputs)
    assert not torch.equal(outputs[0], plain(waveforms, lengths).log_probs)


def masked_frames(max_time_share: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is hidden of twenty batches, (N, T, C), and the batches."""
    augmentation = SpecAugmentation(
        num_time_masks=2, max_time_frames=20, max_time_share=max_time_share, num_channel_masks=1, max_channels=3
    )
    torch.manual_seed(0)
    for _ in range(20):
        frames = torch.randn(4, 50, 8) + 5.0
        yield augmentation(frames, None) != frames, frames


def test_masks_hide_whole_frames_and_channels_within_their_limits() -> None:
    is_anything_hidden = False
    for hidden, _ in masked_frames(max_time_share=0.4):
        times, channels = hidden.all(dim=2), hidden.all(dim=1)
        assert_equal(hidden, times[:, :, None] | channels[:, None, :])
        assert times.sum(dim=1).max() <= 0.4 * 50
        assert channels.sum(dim=1).max() <= 3
        is_anything_hidden |= bool(times.any() and channels.any() and not times.all())
    assert is_anything_hidden


def test_what_is_hidden_is_the_mean_of_the_utterance_without_its_padding() -> None:
    augmentation = SpecAugmentation(
        num_time_masks=1, max_time_frames=20, max_time_share=1.0, num_channel_masks=0, max_channels=0
    )
    torch.manual_seed(3)
    frames = torch.full((1, 40, 4), -23.0)
    frames[:, :30] = torch.randn(1, 30, 4)
    is_valid = torch.arange(40)[None] < 30
    masked = augmentation(frames, is_valid)
    hidden = (masked != frames).all(dim=2) & is_valid
    assert hidden.any()
    assert_close(masked[hidden], frames[:, :30].mean().expand(int(hidden.sum()), 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_model_created_without_memory_initializes_like_any_other(family: str) -> None:
    with torch.device("meta"):
        model = create_ctc(family, layers="weighted")
    to_empty(model, torch.device("cpu"))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(99)
    torch.manual_seed(0)
    reset_parameters(model)
    reset_non_persistent_buffers(model)
    assert not any((value == 99).any() for value in model.state_dict().values())
    assert model.eval()(*create_waveforms(9_000)).log_probs.isfinite().all()


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (EncoderConfig(family="spidr"), "`spear` must be None when `family` is 'spidr'"),
        (EncoderConfig(family="spidr", spear=None), "`spidr` must be set when `family` is 'spidr'"),
        (SpecAugmentConfig(max_time_share=1.5), "`max_time_share` must be in"),
        (SpecAugmentConfig(max_channels=200), "`max_channels` must be from 0 to 128"),
        (CtcConfig(vocabulary_size=1), "`vocabulary_size` must be at least 2"),
        (CtcConfig(dropout_p=1.0), "`dropout_p` must be in"),
        (TaggingConfig(labels=["a", "a"]), "`labels` must be at least one"),
    ],
)
def test_a_wrong_value_is_named(config: object, pattern: str) -> None:
    with pytest.raises(ValidationError, match=pattern):
        StandardObjectValidator().validate(config)


def test_layers_of_an_output_at_another_rate_cannot_be_summed() -> None:
    config = CtcConfig(layers="weighted")
    assert config.encoder.spear is not None
    config.encoder.spear.zipformer.output_downsampling_factor = 2
    with pytest.raises(ValidationError, match="`layers` must be 'last'"):
        StandardObjectValidator().validate(config)

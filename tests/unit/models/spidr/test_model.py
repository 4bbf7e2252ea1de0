from __future__ import annotations

from copy import deepcopy
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import layer_norm
from torch.optim import AdamW

from spear_plugin.models.spidr import SpidrModel, standardize_waveforms
from tests.common import assert_close, assert_equal
from tests.unit.models.spidr.makers import Batch, create_batch, create_small_model, small_config

LENGTHS = [16000, 9000, 15990]


def test_waveforms_are_standardized_one_by_one() -> None:
    waveforms = 3.0 * torch.randn((2, 500)) + 1.0
    standardized = standardize_waveforms(waveforms, torch.tensor([500, 420]))
    for row, waveform, length in zip(standardized, waveforms, (500, 420), strict=True):
        assert_close(row[:length], layer_norm(waveform[:length], (length,)))
        assert not row[length:].any()


@pytest.mark.parametrize("front_end", ["convolutions", "log_mel"])
@torch.no_grad()
def test_an_utterance_has_the_same_features_alone_and_in_a_padded_batch(
    front_end: Literal["convolutions", "log_mel"],
) -> None:
    config = small_config(front_end=front_end)
    model, batch = create_small_model(config).eval(), create_batch(LENGTHS, config=config)
    features = model.extract_features(batch.waveforms, batch.lengths)
    assert features.lengths.tolist() == [49, 27, 49]
    assert len(features.layers) == 3
    for i, length in enumerate(LENGTHS):
        alone = model.extract_features(batch.waveforms[i : i + 1, :length], None)
        num_frames = int(features.lengths[i])
        for together, single in zip(features.layers, alone.layers, strict=True):
            assert single.shape == (1, num_frames, 32)
            assert_close(together[i, :num_frames], single[0], atol=1e-4)


@torch.no_grad()
def test_no_mask_is_used_where_all_frames_are_valid() -> None:
    model, waveforms = create_small_model().eval(), torch.randn((2, 16000))
    masks = []
    model.student.layers[0].register_forward_pre_hook(lambda _, inputs: masks.append(inputs[1]))
    # 15,990 samples have as many frames as 16,000
    for lengths in (None, torch.tensor([16000, 15990]), torch.tensor([16000, 9000])):
        model.extract_features(waveforms, lengths)
    assert masks[:2] == [None, None]
    assert masks[2].sum(dim=1).tolist() == [49, 27]


def test_the_host_never_waits_for_the_device_in_a_forward_pass() -> None:
    # The device without values raises an error wherever one is asked for.
    batch = create_batch(LENGTHS)
    model = create_small_model().to("meta")
    output = model(batch.waveforms.to("meta"), batch.lengths, batch.mask)
    assert output.num_masked == batch.mask.sum()
    output.loss.backward()
    model.codebooks.update(output.statistics)
    model.update_ema(1)


@torch.no_grad()
def test_fewer_layers_are_computed_when_fewer_are_asked_for() -> None:
    model, batch = create_small_model().eval(), create_batch(LENGTHS)
    expected = model.extract_features(batch.waveforms, batch.lengths).layers[:2]
    model.student.layers[2].register_forward_pre_hook(lambda *_: pytest.fail("The last layer was computed."))
    layers = model.extract_features(batch.waveforms, batch.lengths, num_layers=2).layers
    for layer, other in zip(layers, expected, strict=True):
        assert_equal(layer, other)
    assert model.predict_units(batch.waveforms, batch.lengths, 2).shape == (3, 49)


@torch.no_grad()
def test_units_are_the_likeliest_codes_of_the_head_of_a_layer() -> None:
    model, batch = create_small_model().eval(), create_batch(LENGTHS)
    probabilities = model.unit_probabilities(batch.waveforms, batch.lengths, 3)
    assert probabilities.shape == (3, 49, 8)
    assert_close(probabilities.sum(dim=2), torch.ones((3, 49)))
    units = model.predict_units(batch.waveforms, batch.lengths, 3)
    assert units.dtype == torch.int64
    assert_equal(units, probabilities.argmax(dim=2))
    alone = model.predict_units(batch.waveforms[1:2, :9000], None, 3)
    assert_equal(units[1, :27], alone[0])


@pytest.mark.parametrize("layer", [-1, 0, 1, 4])
def test_layers_without_a_head_have_no_units(layer: int) -> None:
    model, batch = create_small_model(), create_batch([16000])
    with pytest.raises(ValueError, match=rf"`layer` must have a head, as those from 2 to 3, but is {layer} instead"):
        model.predict_units(batch.waveforms, batch.lengths, layer)


def test_too_short_waveforms_are_refused_in_one_line() -> None:
    model = create_small_model()
    with pytest.raises(ValueError, match="`waveforms` must have at least 400 samples, one frame, but have 399 instead"):
        model.extract_features(torch.randn(2, 399), None)
    with pytest.raises(ValueError, match="`lengths` must have at least 400 samples, one frame, but have 10 instead"):
        model.extract_features(torch.randn(2, 16000), torch.tensor([16000, 10]))


def test_a_mask_of_another_shape_is_refused() -> None:
    batch = create_batch([16000, 16000])
    with pytest.raises(ValueError, match=r"`mask` must be of shape \(2, 49\).*but has the shape \(2, 48\) instead"):
        create_small_model()(batch.waveforms, batch.lengths, batch.mask[:, :48])


def test_a_batch_without_masked_frames_has_no_loss() -> None:
    model, batch = create_small_model(), create_batch([16000])
    output = model(batch.waveforms, None, torch.zeros((1, 49), dtype=torch.bool))
    output.loss.backward()
    assert (output.num_masked, output.loss.item()) == (0, 0.0)
    before = model.codebooks.sums.clone()
    model.codebooks.update(output.statistics)
    assert_equal(model.codebooks.sums, before)


@torch.no_grad()
@pytest.mark.parametrize("visible_share", [0.0, 0.3, 1.0])
def test_a_share_of_the_predicted_frames_is_visible_in_training_alone(visible_share: float) -> None:
    config = small_config()
    config.masking.visible_share = visible_share
    model, batch = create_small_model(config), create_batch([40000] * 4)
    mask = batch.mask
    # What is hidden has the mask embedding in the student's input.
    inputs: list[Tensor] = []
    model.student.pos_conv_embed.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    training, evaluated = batch.loss_of(model), batch.loss_of(model.eval())

    assert training.num_masked == evaluated.num_masked == int(mask.sum())
    assert_equal(training.labels, evaluated.labels)
    hidden, all_hidden = ((x == model.mask_embedding).all(dim=2) for x in inputs)
    assert_equal(all_hidden, mask)
    assert not (hidden & ~mask).any()
    assert float(hidden.sum() / mask.sum()) == pytest.approx(1.0 - visible_share, abs=0.08)


@torch.no_grad()
def test_without_a_mask_only_valid_frames_are_predicted() -> None:
    batch = create_batch(LENGTHS)
    assert create_small_model()(batch.waveforms, batch.lengths, None).num_masked == 49 + 27 + 49


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_features_in_half_precision_are_close_to_those_in_single(dtype: torch.dtype) -> None:
    model, batch = create_small_model().eval(), create_batch(LENGTHS)
    expected = model.extract_features(batch.waveforms, batch.lengths)
    probabilities = model.unit_probabilities(batch.waveforms, batch.lengths, 2)
    model.to(dtype)
    features = model.extract_features(batch.waveforms, batch.lengths)
    for layer, other in zip(features.layers, expected.layers, strict=True):
        assert layer.dtype == dtype
        assert (layer - other)[0].norm() < 0.03 * other[0].norm()
    assert_close(model.unit_probabilities(batch.waveforms, batch.lengths, 2)[0], probabilities[0], atol=0.02)


def test_loss_and_statistics_are_in_single_precision_under_autocast() -> None:
    model, batch = create_small_model(), create_batch(LENGTHS)
    expected = batch.loss_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = batch.loss_of(model)
        model.codebooks.update(output.statistics)
    assert output.loss.dtype == output.probabilities.dtype == output.statistics.packed.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=5e-3)
    assert_equal(output.statistics.counts.sum(dim=1), torch.full((2,), float(output.num_masked)))
    assert model.codebooks.sums.dtype == torch.float32


def test_the_teacher_is_never_trained_nor_in_training_mode() -> None:
    model = create_small_model().train().requires_grad_(True)
    assert not model.teacher.training
    assert model.student.training
    assert not any(p.requires_grad for p in model.teacher.parameters())
    create_batch(LENGTHS).loss_of(model).loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())


def test_dropout_acts_on_the_student_alone() -> None:
    config = small_config()
    config.encoder.projection_dropout = config.encoder.dropout = config.encoder.attention_dropout = 0.3
    model, batch = create_small_model(config).train(), create_batch(LENGTHS)
    first, second = batch.loss_of(model), batch.loss_of(model)
    assert first.loss != second.loss
    assert_equal(first.statistics.packed, second.statistics.packed)
    model.eval()
    assert_equal(batch.loss_of(model).loss, batch.loss_of(model).loss)


@pytest.mark.parametrize("kind", ["spidr", "dinosr"])
def test_dropped_layers_do_not_pass_on_their_output_but_show_it(kind: str) -> None:
    config = small_config("dinosr" if kind == "dinosr" else "spidr")
    config.encoder.layer_drop = 0.999999
    model, batch = create_small_model(config), create_batch([16000])
    x = model.student.layer_norm(torch.randn(1, 49, 32))
    frames = x + model.student.pos_conv_embed(x, None)
    expected = [layer(model.student.layer_norm(frames), None)[1] for layer in model.student.layers]
    output = model.student(x, None)
    assert_close(output.last, model.student.layer_norm(frames))
    for ours, other in zip(output.feedforward, expected, strict=True):
        assert_close(ours, other)
    # What is dropped and shown to nobody is not computed either.
    computed: list[Module] = []
    for layer in model.student.layers:
        layer.register_forward_pre_hook(lambda module, _: computed.append(module))
    batch.loss_of(model).loss.backward()
    assert computed == (list(model.student.layers[1:]) if kind == "spidr" else [])


def test_statistics_of_parts_of_a_batch_add_up_to_those_of_the_batch() -> None:
    model, batch = create_small_model(), create_batch([16000, 16000])
    whole = batch.loss_of(model)
    parts = [Batch(batch.waveforms[i : i + 1], batch.lengths[i : i + 1], batch.mask[i : i + 1]) for i in range(2)]
    first, second = (part.loss_of(model) for part in parts)
    first.statistics.add_(second.statistics)
    assert_close(first.loss + second.loss, whole.loss)
    assert_close(first.probabilities + second.probabilities, whole.probabilities)
    assert_equal(first.statistics.counts, whole.statistics.counts)
    assert_close(first.statistics.sums, whole.statistics.sums, atol=1e-4)


class Trainer:
    """The steps of a recipe."""

    def __init__(self, model: SpidrModel) -> None:
        self.model = model
        self.optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)

    def step(self, step_nr: int) -> None:
        self.model.freeze_if_due(step_nr - 1)
        output = create_batch(LENGTHS, seed=step_nr).loss_of(self.model)
        output.loss.backward()
        self.optimizer.step()
        self.model.codebooks.update(output.statistics)
        self.model.update_ema(step_nr)
        self.optimizer.zero_grad()


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("num_steps", [2, 4])
def test_a_resumed_run_goes_on_bit_by_bit(num_steps: int) -> None:
    trainer = Trainer(create_small_model())
    for step_nr in range(1, num_steps + 1):
        trainer.step(step_nr)
    torch.manual_seed(5)
    resumed = Trainer(create_small_model())
    resumed.model.load_state_dict(state_of(trainer))
    resumed.optimizer.load_state_dict(deepcopy(trainer.optimizer.state_dict()))
    resumed.model.requires_grad_(True).train()
    assert int(resumed.model.current_step) == num_steps
    for one in (trainer, resumed):
        one.step(num_steps + 1)
    for name, value in state_of(trainer).items():
        assert_equal(resumed.model.state_dict()[name], value)


def test_features_stay_as_they_are_from_the_freezing_step_on() -> None:
    trainer = Trainer(create_small_model())
    states = [state_of(trainer)]
    for step_nr in range(1, 6):
        trainer.step(step_nr)
        states.append(state_of(trainer))
    for step_nr in range(1, 6):
        for name, value in states[step_nr].items():
            is_feature = name.startswith(("feature_extractor", "feature_projection"))
            is_unused = name.startswith("student.layers.2.final_layer_norm")
            is_still = (is_feature and step_nr > 3) or is_unused
            if not name.startswith("teacher.layers.2.final_layer_norm"):
                assert torch.equal(value, states[step_nr - 1][name]) == is_still, (step_nr, name)


@pytest.mark.parametrize("copied_parts", [["pos_conv_embed"], []])
def test_the_teacher_moves_by_the_curve_and_copies_what_is_named(copied_parts: list[str]) -> None:
    config = small_config()
    config.ema.copied_parts = copied_parts
    model = create_small_model(config)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(torch.randn_like(p))
    model.update_ema(2)
    weight = 1.0 - model.ema.curve.at(2)
    assert 0.05 < weight < 0.07
    for name, p in model.teacher.named_parameters():
        student = model.student.get_parameter(name)
        if copied_parts and name.startswith("pos_conv_embed"):
            assert_equal(p.detach(), student.detach())
        else:
            assert_close(p, before[name] + weight * (student - before[name]))


def test_a_decay_of_one_leaves_the_teacher_alone() -> None:
    config = small_config()
    config.ema.threshold = 1.0
    model = create_small_model(config)
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1.0)
    model.update_ema(1)
    for name, p in model.teacher.named_parameters():
        assert_equal(p.detach(), before[name].detach())

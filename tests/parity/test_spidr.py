"""SpidR's forward pass, gradients, codebooks and layout against the authors' code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from spear_plugin.models.spidr import (
    OnlineCodebooks,
    SpidrConfig,
    SpidrModel,
    convert_spidr_state_dict,
    create_frame_geometry,
    create_spidr_model,
    export_spidr_state_dict,
)
from spear_plugin.models.spidr.codebook import CodebookStatistics
from spear_plugin.nn.masking import SpanLaw, compute_equal_span_mask
from tests.common import GOLDEN_FOLDER, assert_close, assert_equal
from tests.parity.spidr import assert_golden, convert_config, create_golden_model, golden_batches, load_spidr_golden

CONFIG: dict[str, Any] = load_spidr_golden("tiny_init")["config"]
FORWARD: dict[str, Any] = load_spidr_golden("tiny_forward")
DINOSR: dict[str, Any] = load_spidr_golden("tiny_dinosr")
RESULTS: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spidr" / "results.json").read_text())
BATCH = golden_batches()[0]


def perplexity(counts: Tensor) -> Tensor:
    """The authors' perplexity (K,) of how often each of V codes occurs, (K, V); they average it over codebooks."""
    shares = counts / counts.sum(dim=1, keepdim=True)
    return 2 ** -(shares * (shares + 1e-8).log2()).sum(dim=1)


def is_valid(frames: Tensor) -> Tensor:
    return torch.arange(int(frames.max())) < frames[:, None]


def encode_step_by_step(model: SpidrModel, x: Tensor) -> dict[str, Tensor]:
    """Return what the authors' files have of the encoder's inner values, for the frames `x` that enter it."""
    valid = is_valid(BATCH.frames)
    pos_conv = model.student.pos_conv_embed(x, valid)
    x = x + pos_conv
    if not model.student.layer_norm_first:
        x = model.student.layer_norm(x)
    layers, outputs = [], []
    for layer in model.student.layers:
        x, output = layer(x, valid)
        layers.append(x)
        outputs.append(output)
    return {"pos_conv": pos_conv, "layers_out": torch.stack(layers), "layers_ffn": torch.stack(outputs)}


@torch.no_grad()
def compare_encoder(model: SpidrModel, expected: dict[str, Tensor], *, is_final_masked: bool) -> None:
    extracted = model.feature_extractor(BATCH.waveforms)
    projected = model.feature_projection(extracted)
    assert_golden(extracted, expected["extractor"])
    assert_golden(projected, expected["projected"])
    masked = torch.where(BATCH.mask[:, :, None], model.mask_embedding, projected)
    for name, value in encode_step_by_step(model, masked).items():
        assert_golden(value, expected[name], name)
    valid = is_valid(BATCH.frames)
    output = model.student(masked, valid)
    assert_golden(torch.stack(output.feedforward), expected["layers_ffn"])
    final = output.last if is_final_masked else model.student(projected, valid).last
    assert_golden(final, expected["encoder_final"])


def test_encoder_equals_the_authors() -> None:
    compare_encoder(create_golden_model(CONFIG).eval(), FORWARD["forward"], is_final_masked=True)


@pytest.mark.parametrize("name", ["group_norm_bias_evenpos", "pre_ln"])
def test_variants_equal_the_authors(name: str) -> None:
    variant = load_spidr_golden("tiny_variants")[name]
    model = create_spidr_model(convert_config(CONFIG | variant["overrides"])).eval()
    missing, unexpected = model.load_state_dict(variant["state_dict"], strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"teacher", "heads", "codebooks"}
    compare_encoder(model, variant["forward"], is_final_masked=False)


@torch.no_grad()
def test_features_and_units_equal_the_authors() -> None:
    model, expected = create_golden_model(CONFIG).eval(), FORWARD["forward"]
    features = model.extract_features(BATCH.waveforms, BATCH.lengths)
    assert_equal(features.lengths, BATCH.frames)
    assert_golden(torch.stack(features.layers), expected["public_intermediate_attnmask"])
    without_mask = model.extract_features(BATCH.waveforms, None)
    assert_golden(torch.stack(without_mask.layers), expected["public_intermediate_nomask"])
    for index, layer in enumerate((2, 3, 4)):
        probabilities = model.unit_probabilities(BATCH.waveforms, BATCH.lengths, layer)
        assert_golden(probabilities, expected["public_codebooks"][index])
        units = model.predict_units(BATCH.waveforms, BATCH.lengths, layer)
        assert_equal(units, expected["public_codebooks_argmax"][index])


@torch.no_grad()
def test_targets_and_labels_equal_the_authors() -> None:
    model = create_golden_model(CONFIG)
    frames = model.feature_projection(model.feature_extractor(BATCH.waveforms))
    indices = BATCH.mask.flatten().nonzero().squeeze(1)
    targets = model.compute_targets(frames, is_valid(BATCH.frames), indices)
    assert_golden(targets, FORWARD["forward"]["targets"])
    assert_equal(model.codebooks.assign(targets), FORWARD["forward"]["labels"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_loss_and_perplexities_equal_the_authors(mode: str) -> None:
    expected = FORWARD["forward"]
    output = BATCH.loss_of(create_golden_model(CONFIG).train(mode == "train"))
    assert output.num_masked == expected[f"loss_{mode}"].numel()
    assert_golden(output.loss, expected[f"loss_{mode}"].sum())
    assert_equal(output.labels, expected["labels"])
    assert_golden(perplexity(output.statistics.counts).mean(), expected[f"target_ppl_{mode}"])
    assert_golden(perplexity(output.probabilities).mean(), expected[f"pred_ppl_{mode}"])


@torch.no_grad()
def test_loss_without_a_mask_is_over_all_frames() -> None:
    output = create_golden_model(CONFIG).eval()(BATCH.waveforms, None, None)
    assert output.num_masked == FORWARD["forward"]["loss_eval_allframes_count"]
    assert_golden(output.loss / output.num_masked, FORWARD["forward"]["loss_eval_allframes_mean"])


def test_gradients_equal_the_authors() -> None:
    model = create_golden_model(CONFIG)
    output = BATCH.loss_of(model)
    (output.loss / output.num_masked).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    exported = export_spidr_state_dict(gradients)
    assert exported.keys() == FORWARD["grads"].keys()
    for name, gradient in FORWARD["grads"].items():
        assert_golden(exported[name], gradient, name)
    is_unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert is_unused == set(FORWARD["params_without_grad"])


def test_codebooks_after_a_batch_equal_the_authors() -> None:
    model = create_golden_model(CONFIG)
    model.codebooks.update(BATCH.loss_of(model).statistics)
    exported = export_spidr_state_dict(model.state_dict())
    for name, value in FORWARD["codebooks_after_one_forward"].items():
        assert_golden(exported[name], value, name)


def test_codebook_of_the_unit_example_equals_the_authors() -> None:
    golden = load_spidr_golden("unit_codebook_ppl")
    codebooks = OnlineCodebooks(1, 5, 6, decay=0.9)
    codebooks.sums.copy_(golden["codebook0"])
    codebooks.counts.copy_(golden["counts0"])
    for step in (1, 2):
        frames = golden[f"x{step}"][None]
        labels = codebooks.assign(frames)
        assert_equal(labels[0], golden[f"labels{step}"])
        codebooks.update(CodebookStatistics.of(frames, labels, 5))
        assert_golden(codebooks.sums[0], golden[f"codebook{step}"])
        assert_golden(codebooks.counts[0], golden[f"counts{step}"])


def test_perplexity_of_these_tests_equals_the_authors() -> None:
    golden = load_spidr_golden("unit_codebook_ppl")
    assert_golden(perplexity(golden["ppl_in"].mean(dim=0)[None])[0], golden["ppl_out"])


@torch.no_grad()
def test_dinosr_equals_the_authors() -> None:
    model, expected = create_golden_model(DINOSR["config"]).eval(), DINOSR["forward"]
    output = BATCH.loss_of(model)
    assert_golden(output.loss, expected["loss_eval"].sum())
    assert_equal(output.labels, expected["labels"])
    assert_golden(perplexity(output.statistics.counts).mean(), expected["target_ppl_eval"][0])
    assert_golden(perplexity(output.probabilities).mean(), expected["pred_ppl_eval"][0])
    for index, layer in enumerate((2, 3, 4)):
        probabilities = model.unit_probabilities(BATCH.waveforms, None, layer)
        assert_golden(probabilities, expected["public_codebooks"][index])


def test_batches_of_the_golden_files_are_standardized_before_padding() -> None:
    for waveform, length in zip(BATCH.waveforms, BATCH.lengths.tolist(), strict=True):
        assert_close(waveform[:length], layer_norm(waveform[:length], (length,)), atol=1e-4)
        assert not waveform[length:].any()


def test_frames_are_counted_as_by_the_authors() -> None:
    geometry = create_frame_geometry(SpidrConfig())
    assert geometry.receptive_field == 400
    assert geometry.hop == 320
    counts = {int(num_samples): count for num_samples, count in RESULTS["conv_length"].items()}
    assert {num_samples: geometry.num_frames(num_samples) for num_samples in counts} == counts
    lengths = torch.tensor(list(counts))
    assert geometry.num_frames_of(lengths).tolist() == list(counts.values())
    for num_samples in range(400, 2000):
        frames = num_samples
        for kernel_size, stride in zip(geometry.kernel_sizes, geometry.strides, strict=True):
            frames = (frames - kernel_size) // stride + 1
        assert geometry.num_frames(num_samples) == frames


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_layout_is_that_of_the_authors_in_both_directions(name: str) -> None:
    config = convert_config(CONFIG) if name == "tiny" else SpidrConfig()
    with torch.device("meta"):
        state_dict = create_spidr_model(config).state_dict()
    exported = export_spidr_state_dict(state_dict)
    lines = (GOLDEN_FOLDER / "spidr" / f"state_dict_keys_{name}.txt").read_text().splitlines()
    described = {key: f"{tuple(v.shape)}\t{str(v.dtype).removeprefix('torch.')}" for key, v in exported.items()}
    assert described == dict(line.split("\t", 1) for line in lines)
    converted = convert_spidr_state_dict(dict(exported), config)
    assert {k: v.shape for k, v in converted.items() if isinstance(v, Tensor)} == {
        k: v.shape for k, v in state_dict.items()
    }


def test_base_has_as_many_parameters_as_the_authors() -> None:
    with torch.device("meta"):
        model = create_spidr_model(SpidrConfig())
    expected = RESULTS["base_params"]
    assert sum(p.numel() for p in model.parameters()) == expected["all_parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected["trainable_at_start"]
    parts = ("teacher", "student", "feature_extractor", "feature_projection", "heads")
    assert {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in parts} == {
        part: expected[part] for part in parts
    }


@pytest.mark.parametrize(
    ("seed", "lengths", "law", "spread", "name"),
    [
        (0, [99, 99], "static", 0.0, "seed0_2x99_nopad"),
        (1, [249, 249, 249], "static", 0.0, "seed1_3x249_nopad"),
        (2, [20], "static", 0.0, "seed2_1x20_nopad"),
        (3, [99, 60], "static", 0.0, "seed3_2x99_pad60"),
        (4, [99, 99], "uniform", 2.0, "seed4_2x99_uniform"),
        (4, [99, 99], "normal", 3.0, "seed4_2x99_normal"),
    ],
)
def test_masks_equal_the_authors_bit_by_bit(
    seed: int, lengths: list[int], law: SpanLaw, spread: float, name: str
) -> None:
    mask = compute_equal_span_mask(
        lengths,
        max(lengths),
        probability=0.8,
        span=10,
        min_masks=2,
        law=law,
        spread=spread,
        generator=torch.Generator().manual_seed(seed),
    )
    assert_equal(mask, load_spidr_golden("masks_exact")[name])

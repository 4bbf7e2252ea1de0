"""Steps of training, decay curves and initial weights of SpidR and DinoSR against the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from spear_plugin.models.spidr import SpidrConfig, SpidrModel, create_spidr_model, export_spidr_state_dict
from spear_plugin.models.spidr.ema import ExponentialDecay, LinearDecay
from tests.common import GOLDEN_FOLDER, assert_equal
from tests.parity.spidr import assert_golden, convert_config, create_golden_model, golden_batches, load_spidr_golden
from tests.parity.test_spidr import perplexity

INIT: dict[str, Any] = load_spidr_golden("tiny_init")
RESULTS: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spidr" / "results.json").read_text())


def count_parameters(model: SpidrModel, is_counted: Callable[[Tensor], bool]) -> int:
    """Count as the authors do, for whom each head has its own parameters."""
    counted = {name: p.detach() for name, p in model.named_parameters() if is_counted(p)}
    return len(export_spidr_state_dict(counted))


def train(model: SpidrModel, optimizer: Optimizer, logs: list[dict[str, Any]], max_norm: float) -> None:
    """Repeat the authors' steps and compare what they logged; `max_norm` is infinite for no clipping."""
    batches = golden_batches()
    for log in logs:
        for group in optimizer.param_groups:
            group["lr"] = log["lr"]
        output = batches[log["batch"]].loss_of(model)
        (output.loss / output.num_masked).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm)
        optimizer.step()
        model.codebooks.update(output.statistics)
        assert count_parameters(model, lambda p: p.grad is not None) == log["params_with_grad"]
        model.update_ema(log["step"])
        optimizer.zero_grad()

        assert output.num_masked == log["num_frames"]
        assert (output.loss / output.num_masked).item() == pytest.approx(log["loss"], abs=2e-5)
        assert norm.item() == pytest.approx(log["grad_norm"], rel=1e-4)
        assert perplexity(output.statistics.counts).mean().item() == pytest.approx(log["target_ppl"], rel=1e-5)
        assert perplexity(output.probabilities).mean().item() == pytest.approx(log["pred_ppl"], rel=1e-5)
        labels = output.labels.flatten()
        assert (labels * torch.arange(1, labels.numel() + 1)).sum().item() == log["labels_checksum"]
        assert model.ema.curve.at(log["step"]) == pytest.approx(log["ema_decay"])
        assert count_parameters(model, lambda p: p.requires_grad) == log["trainable"]
        assert model.current_step.tolist() == [log["step"]]


def assert_state(model: SpidrModel, expected: dict[str, Tensor]) -> None:
    exported = export_spidr_state_dict(model.state_dict())
    for name, value in expected.items():
        assert_golden(exported[name], value, name)


def trained_parameters(model: SpidrModel) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def test_three_steps_of_sgd_equal_the_authors() -> None:
    golden = load_spidr_golden("tiny_spidr_sgd")
    model = create_golden_model(INIT["config"])
    train(model, SGD(trained_parameters(model), lr=0.05), golden["logs"], float("inf"))
    assert golden["state_dict_step3"].keys() == export_spidr_state_dict(model.state_dict()).keys()
    assert_state(model, golden["state_dict_step3"])


def test_five_steps_of_adamw_with_frozen_features_equal_the_authors() -> None:
    golden = load_spidr_golden("tiny_spidr_adamw")
    options = golden["optimizer_config"]
    model = create_golden_model(INIT["config"])
    optimizer = AdamW(
        trained_parameters(model), betas=options["betas"], eps=options["eps"], weight_decay=options["weight_decay"]
    )
    unused = {n: p.detach().clone() for n, p in model.named_parameters() if "student.layers.3.final_layer_norm" in n}
    assert len(unused) == 2
    train(model, optimizer, golden["logs"][:3], options["max_norm"])
    assert_state(model, golden["state_dict_step3"])
    train(model, optimizer, golden["logs"][3:], options["max_norm"])
    assert_state(model, golden["state_dict_step5_part"])
    for name, value in unused.items():
        assert_equal(model.get_parameter(name).detach(), value)


def test_three_steps_of_dinosr_equal_the_authors() -> None:
    golden = load_spidr_golden("tiny_dinosr")
    model = create_golden_model(golden["config"])
    train(model, SGD(trained_parameters(model), lr=0.05), golden["logs"], float("inf"))
    assert_state(model, golden["heads_and_teacher_ln_step3"])


def test_decay_curves_equal_the_authors() -> None:
    spidr = ExponentialDecay(0.999, 20_000.0, 1e-7)
    dinosr = LinearDecay(0.999, 0.9999, 30_000, 200_000)
    for curve, name in ((spidr, "spidr_ema_decay"), (dinosr, "dinosr_ema_decay")):
        decays = [curve.at(step) for step in RESULTS["schedules"]["steps"]]
        assert decays == pytest.approx(RESULTS["schedules"][name], rel=1e-12)
    assert spidr.at(184_206) < 1.0
    assert spidr.at(184_207) == 1.0


def kind_of(name: str, value: Tensor) -> str:
    """The law that initial values of a parameter follow; for the mean and the deviation of many of them."""
    if name.startswith("codebooks") or name == "current_step":
        return "state"
    if value.dim() == 1 and "layer_norm" in name:
        return f"norm {name.rsplit('.', maxsplit=1)[-1]}"
    for part in ("mask_embedding", "heads", "conv_layers.0.", "conv_layers", "pos_conv_embed", "qkv", "attention.proj"):
        if part in name:
            return f"{part} {value.dim()}"
    return f"{'feed_forward' if 'feed_forward' in name else 'projection'} {value.dim()}"


def describe(state_dict: dict[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    groups: dict[str, list[Tensor]] = {}
    for name, value in state_dict.items():
        groups.setdefault(kind_of(name, value), []).append(value.double().flatten())
    del groups["state"]
    values = {kind: torch.cat(tensors) for kind, tensors in groups.items()}
    return {k: (v.mean().item(), v.std().item(), v.abs().max().item()) for k, v in values.items()}


def test_initial_weights_are_distributed_as_the_authors() -> None:
    expected = describe(INIT["state_dict"])
    torch.manual_seed(0)
    models = [create_spidr_model(convert_config(INIT["config"])) for _ in range(10)]
    ours = [describe(export_spidr_state_dict(model.state_dict())) for model in models]
    assert expected.keys() == ours[0].keys()
    for kind, (mean, deviation, largest) in expected.items():
        means, deviations, largests = (torch.tensor([o[kind][i] for o in ours], dtype=torch.float64) for i in range(3))
        assert abs(means.mean().item() - mean) <= 4 * means.std().item() + 1e-12, kind
        assert abs(deviations.mean().item() - deviation) <= 4 * deviations.std().item() + 1e-12, kind
        assert abs(largests.mean().item() - largest) <= 6 * largests.std().item() + 1e-12, kind


@pytest.mark.parametrize("state", ["ours", "theirs"])
def test_a_new_teacher_shares_only_norms_and_positions_with_its_student(state: str) -> None:
    state_dict: dict[str, Tensor] = INIT["state_dict"]
    if state == "ours":
        state_dict = create_spidr_model(convert_config(INIT["config"])).state_dict()
    for name, value in state_dict.items():
        if name.startswith("student."):
            is_linear = name.endswith("weight") and "norm" not in name and "pos_conv" not in name
            assert torch.equal(value, state_dict[name.replace("student", "teacher")]) != is_linear, name


@pytest.mark.parametrize("state", ["ours", "theirs"])
def test_new_codebooks_are_standardized_over_their_codes(state: str) -> None:
    codebooks = [INIT["state_dict"][f"codebooks.{k}.codebook"] for k in range(3)]
    if state == "ours":
        model = create_spidr_model(SpidrConfig(**vars(convert_config(INIT["config"]))))
        codebooks = list(model.codebooks.sums)
        assert (model.codebooks.counts == 1).all()
    for codebook in codebooks:
        assert_golden(codebook.mean(dim=0), torch.zeros(32))
        assert_golden(codebook.std(dim=0, correction=0), torch.ones(32))

"""Alignment, heads, and the two losses against the authors' code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from spear_plugin.models.spear.alignment import CodeAlignment
from spear_plugin.models.spear.heads import CodebookHead
from spear_plugin.models.spear.masker import FbankMasks
from tests.common import GOLDEN_FOLDER, assert_close, assert_equal, load_golden

GOLDEN = load_golden("spear/modules")
DESCRIPTION: dict[str, Any] = json.loads((GOLDEN_FOLDER / "spear" / "modules.json").read_text())


def create_head(
    weight: Tensor, bias: Tensor, *, alpha: float = 0.5, domain_weights: tuple[float, ...] = (1.0, 1.0)
) -> CodebookHead:
    head = CodebookHead(
        weight.size(2),
        weight.size(0),
        weight.size(1),
        alignment=CodeAlignment(),
        alpha=alpha,
        domain_weights=domain_weights,
    )
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


@pytest.mark.parametrize("index", range(7), ids=[case["case"] for case in DESCRIPTION["align"]])
def test_aligned_codes_are_equal(index: int) -> None:
    case = DESCRIPTION["align"][index]
    code_rate, encoder_rate = (float(rate) for rate in case["case"].split()[0].split("->"))
    aligned = CodeAlignment.between(code_rate, encoder_rate)(GOLDEN[f"align.{index}.codes"], case["student_frames"])
    assert_equal(aligned, GOLDEN[f"align.{index}.aligned"])


def test_cross_entropy_of_parallel_heads_is_equal() -> None:
    golden = load_golden("spear/mvq")
    head = create_head(golden["heads.linear2b_weight"], golden["heads.linear2_bias"])
    logits = head.predict(golden["heads.pred"])
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), golden["heads.z"].flatten(), ignore_index=-100, reduction="none"
    )
    assert_close(losses.view_as(golden["heads.loss"]), golden["heads.loss"])


class DualDomainLoss:
    """The golden batch through both heads; tasks 1 and 2 are the domains 0 and 1."""

    def __init__(self, alpha: float = 0.5) -> None:
        self.frames = GOLDEN["dual.H"].clone().requires_grad_()
        audio_weight = DESCRIPTION["dual"]["lambda_audio"]
        self.speech = create_head(GOLDEN["dual.w_speech"], GOLDEN["dual.b_speech"], alpha=alpha)
        self.audio = create_head(
            GOLDEN["dual.w_audio"], GOLDEN["dual.b_audio"], alpha=alpha, domain_weights=(0.0, audio_weight)
        )
        is_masked = GOLDEN["dual.frame_masked"]
        is_ignored = torch.zeros_like(is_masked)
        domains = GOLDEN["dual.task"] - 1
        speech, self.speech_statistics = self.speech(
            self.frames, GOLDEN["dual.z_speech"], is_masked, is_ignored, domains
        )
        audio, self.audio_statistics = self.audio(self.frames, GOLDEN["dual.z_audio"], is_masked, is_ignored, domains)
        self.per_sample = speech + audio


def test_dual_domain_loss_and_its_gradients_are_equal() -> None:
    loss = DualDomainLoss()
    assert_close(loss.per_sample, GOLDEN["dual.per_sample"])
    assert_close(loss.per_sample.sum(), GOLDEN["dual.total"])
    loss.per_sample.sum().backward()
    assert loss.frames.grad is not None
    assert loss.speech.weight.grad is not None
    assert loss.audio.bias.grad is not None
    assert_close(loss.frames.grad, GOLDEN["dual.grad_H"])
    assert_close(loss.speech.weight.grad, GOLDEN["dual.grad_w_speech"])
    assert_close(loss.audio.bias.grad, GOLDEN["dual.grad_b_audio"])


def test_statistics_hold_the_losses_before_domain_weights() -> None:
    loss = DualDomainLoss()
    is_audio = GOLDEN["dual.task"] == 2
    for statistics, name in ((loss.speech_statistics, "dual.sum_speech"), (loss.audio_statistics, "dual.sum_audio")):
        assert_close(statistics.loss, torch.stack([GOLDEN[name][~is_audio].sum(), GOLDEN[name][is_audio].sum()]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_alpha_weighs_masked_against_unmasked_frames(alpha: float) -> None:
    loss = DualDomainLoss(alpha)
    assert_close(loss.per_sample, GOLDEN[f"dual.alpha{alpha}.per_sample"])


@pytest.mark.parametrize("factor", [2, 4])
def test_masks_at_the_output_rate_are_equal(factor: int) -> None:
    time = GOLDEN["mask_down.in100hz"]
    masks = FbankMasks(time=time, channel=torch.zeros((time.size(0), 128), dtype=torch.bool))
    expected = GOLDEN[f"mask_down.k{factor}"]
    assert_equal(masks.at_output_rate(expected.size(1), factor=factor), expected)
    assert_equal(masks.at_output_rate(5, factor=factor), expected[:, :5])

"""The quantizer against the tensors of the authors' code (mvq, mvq2; see tests/golden/spear)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spear_plugin.quantizers import (
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerTrainer,
    QuantizerTrainingConfig,
    create_product_quantizer,
    pack_codes,
    unpack_codes,
)
from tests.common import assert_close, assert_equal, load_golden, strip_prefix

# Golden file, prefix of the weights, prefix of the results, name of the frames.
_QUANTIZERS = [
    ("spear/mvq", "quantizer.", "", "x"),
    ("spear/mvq2", "phase1.", "phase1.", "x"),
    ("spear/mvq2", "final.", "final.", "x"),
    ("spear/mvq2", "wide.", "wide.", "wide.x"),
]


def _load(golden: dict[str, Tensor], prefix: str) -> MultiCodebookQuantizer:
    weights = strip_prefix(prefix, golden)
    num_codebooks, codebook_size, dim = weights["centers"].shape
    quantizer = MultiCodebookQuantizer(dim, codebook_size, num_codebooks)
    state_dict = quantizer.state_dict()
    state_dict.update({key: weights[key] for key in weights.keys() & state_dict.keys()})
    quantizer.load_state_dict(state_dict)
    return quantizer


@pytest.mark.parametrize(("file", "weights", "results", "frames"), _QUANTIZERS)
def test_codes_equal_the_reference_after_each_refinement(file: str, weights: str, results: str, frames: str) -> None:
    golden = load_golden(file)
    quantizer = _load(golden, weights)
    expected = strip_prefix(f"{results}codes.refine", golden)
    assert len(expected) >= 4
    for num_refinements, codes in expected.items():
        assert_equal(quantizer.encode(golden[frames], int(num_refinements)), codes)


def test_decoded_frames_equal_the_reference() -> None:
    golden = load_golden("spear/mvq")
    assert_close(_load(golden, "quantizer.").decode(golden["codes.refine5"]), golden["decoded5"])


@pytest.mark.parametrize(("file", "weights", "results", "frames"), _QUANTIZERS[:3])
def test_losses_equal_the_reference(file: str, weights: str, results: str, frames: str) -> None:
    golden = load_golden(file)
    quantizer = _load(golden, weights)
    for num_refinements, expected in enumerate(golden[f"{results}losses"]):
        losses = quantizer.compute_loss(golden[frames], num_refinements=num_refinements)
        terms = [losses.relative_reconstruction, losses.classification, losses.entropy]
        assert_close(torch.stack(terms).double(), expected[:3])


def test_total_loss_and_gradients_equal_the_reference() -> None:
    golden = load_golden("spear/mvq2")
    quantizer = _load(golden, "final.")
    total = quantizer.compute_loss(golden["x"], num_refinements=2).total
    torch.autograd.backward(total)
    assert_close(total, golden["final.total_loss_refine2"])
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, golden[f"final.grad.{name}"], atol=1e-6, message=name)


def test_product_quantizer_equals_the_reference() -> None:
    golden = load_golden("spear/mvq2")
    product = create_product_quantizer(_load(golden, "phase1."))
    assert_close(product.to_logits.weight.sum(dim=1), golden["product.row_sums_logits_weight"])
    assert_close(product.to_logits.bias, golden["product.logits_bias"])
    assert_close(product.centers.sum(dim=2), golden["product.row_sums_centers"])
    for num_refinements in range(6):
        assert_equal(product.encode(golden["x"], num_refinements), golden[f"product.codes.refine{num_refinements}"])


def test_codes_of_small_codebooks_are_packed_like_the_reference() -> None:
    golden = load_golden("spear/mvq2")
    codes, packed = golden["phase1.codes.refine5"], golden["phase1.bytes.refine5"]
    assert_equal(pack_codes(codes, 16), packed)
    assert_equal(unpack_codes(packed, 16), codes)


def test_learning_rates_equal_the_reference() -> None:
    config = QuantizerTrainingConfig(phase_one_steps=60, phase_two_steps=60, batch_frames=2)
    sizes = MvqQuantizerConfig(dim=4, codebook_size=16, num_codebooks=2, normalize=False)
    trainer = QuantizerTrainer(torch.randn(8, 4), sizes, config)
    rates: list[float] = []
    trainer.run(lambda progress: rates.append(progress.lr))
    assert_close(torch.tensor(rates, dtype=torch.float64), load_golden("spear/mvq2")["lrs"], rtol=1e-9, atol=0)

"""The quantizer against the package multi-quantization on random weights."""

from __future__ import annotations

import multi_quantization
import pytest
import torch
from torch import Tensor

from spear_plugin.quantizers import MultiCodebookQuantizer, convert_to_multi_quantization, pack_codes
from tests.common import assert_close, assert_equal

_SIZES = [(24, 256, 4), (16, 256, 8), (12, 16, 16), (32, 64, 2), (8, 256, 1)]


def _make(dim: int, codebook_size: int, num_codebooks: int) -> tuple[MultiCodebookQuantizer, Tensor]:
    """Return a quantizer that does not fit its frames well, and 150 frames."""
    torch.manual_seed(dim)
    quantizer = MultiCodebookQuantizer(dim, codebook_size, num_codebooks)
    with torch.no_grad():
        quantizer.centers.add_(0.2 * torch.randn_like(quantizer.centers))
        quantizer.centers_scale.fill_(0.02)
        quantizer.logits_scale.fill_(-0.03)
    return quantizer, torch.randn(150, dim)


def _load_theirs(quantizer: MultiCodebookQuantizer) -> multi_quantization.Quantizer:
    theirs = multi_quantization.Quantizer(
        dim=quantizer.dim, codebook_size=quantizer.codebook_size, num_codebooks=quantizer.num_codebooks
    )
    theirs.load_state_dict(convert_to_multi_quantization(quantizer.state_dict()))
    return theirs


@pytest.mark.parametrize("sizes", _SIZES)
def test_codes_equal_index_for_index(sizes: tuple[int, int, int]) -> None:
    quantizer, x = _make(*sizes)
    theirs = _load_theirs(quantizer)
    for num_refinements in (0, 1, 2, 5):
        expected = theirs.encode(x, num_refinements, as_bytes=False)
        assert_equal(quantizer.encode(x, num_refinements).long(), expected.long())


def test_packed_codes_and_decoded_frames_are_equal() -> None:
    quantizer, x = _make(12, 16, 16)
    theirs = _load_theirs(quantizer)
    codes = quantizer.encode(x)
    assert_equal(pack_codes(codes, 16), theirs.encode(x, as_bytes=True))
    assert_close(quantizer.decode(codes), theirs.decode(codes.long()))


def test_a_normalizing_quantizer_equals_the_package_on_standardized_frames() -> None:
    quantizer = MultiCodebookQuantizer(16, 256, 4, normalize=True)
    x = 5.0 * torch.randn(100, 16) + 3.0
    quantizer.set_statistics(x.mean(dim=0), x.std(dim=0))
    expected = _load_theirs(quantizer).encode((x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5), as_bytes=False)
    assert_equal(quantizer.encode(x).long(), expected.long())


def test_the_state_dict_of_the_package_loads() -> None:
    theirs = multi_quantization.Quantizer(dim=16, codebook_size=256, num_codebooks=4)
    quantizer = MultiCodebookQuantizer(16, 256, 4)
    quantizer.load_state_dict(theirs.state_dict())
    x = torch.randn(100, 16)
    assert_equal(quantizer.encode(x).long(), theirs.encode(x, as_bytes=False).long())

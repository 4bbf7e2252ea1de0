from __future__ import annotations

import pytest
import torch

from spear_plugin.quantizers import ClassifierQuantizer, ClassifierQuantizerConfig, relative_error
from tests.common import assert_close, assert_equal


def _make(codebook_size: int = 20, num_codebooks: int = 3) -> ClassifierQuantizer:
    torch.manual_seed(0)
    quantizer = ClassifierQuantizer(8, codebook_size, num_codebooks)
    quantizer.set_classifiers(torch.randn(num_codebooks, codebook_size, 8), torch.randn(num_codebooks, codebook_size))
    return quantizer


def test_the_code_is_the_likeliest_class() -> None:
    quantizer, x = _make(), torch.randn(4, 30, 8)
    codes = quantizer.encode(x)
    assert (codes.shape, codes.dtype) == ((4, 30, 3), torch.uint8)
    for n in range(3):
        assert_equal(codes[..., n].long(), (x @ quantizer.weight[n].T + quantizer.bias[n]).argmax(dim=-1))
    assert _make(codebook_size=300).encode(x).dtype == torch.int32


def test_autocast_does_not_change_codes() -> None:
    quantizer, x = _make(), torch.randn(500, 8)
    expected = quantizer.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(quantizer.encode(x), expected)


def test_codes_are_decoded_to_the_mean_of_their_frames() -> None:
    quantizer, frames = _make(num_codebooks=1), torch.randn(2000, 8)
    quantizer.fit_centers(frames)
    codes = quantizer.encode(frames)[:, 0]
    for code in codes.unique().tolist():
        assert_close(quantizer.decode(torch.tensor([code])), frames[codes == code].mean(dim=0), atol=1e-5)
    assert 0.1 < relative_error(quantizer, frames) < 0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClassifierQuantizerConfig(codebook_size=1), "`codebook_size` must be from 2 to 32768, but is 1"),
        (ClassifierQuantizerConfig(num_codebooks=0), "`num_codebooks` must be at least 1, but is 0"),
        (ClassifierQuantizerConfig(normalize=True), "`normalize` must be false"),
    ],
)
def test_a_wrong_size_is_named(config: ClassifierQuantizerConfig, message: str) -> None:
    (error,) = config.validate().errors
    assert message in str(error)

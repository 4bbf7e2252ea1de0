from __future__ import annotations

import pytest
import torch

from spear_plugin.quantizers import MultiCodebookQuantizer, base, create_product_quantizer
from tests.common import assert_close, assert_equal


def _make(*, normalize: bool = False) -> MultiCodebookQuantizer:
    torch.manual_seed(3)
    quantizer = MultiCodebookQuantizer(12, 16, 4, normalize=normalize)
    if normalize:
        quantizer.set_statistics(torch.linspace(-5, 5, 12), torch.linspace(0.1, 4, 12))
    return quantizer


def test_state_dict_has_the_names_of_the_package() -> None:
    names = {"to_logits.weight", "to_logits.bias", "centers", "logits_scale", "centers_scale", "id_buf"}
    assert set(_make().state_dict()) == names
    assert set(_make(normalize=True).state_dict()) == names | {"mean", "std"}


def test_entries_start_as_the_classifiers_weights() -> None:
    quantizer = _make()
    assert_equal(quantizer.entries().flatten(0, 1), quantizer.to_logits.weight)


def test_encode_keeps_leading_dimensions() -> None:
    quantizer, x = _make(), torch.randn(2, 5, 12)
    codes = quantizer.encode(x)
    assert codes.shape == (2, 5, 4)
    assert codes.dtype == torch.uint8
    assert_equal(codes[1], quantizer.encode(x[1]))
    assert_equal(codes[1, 3], quantizer.encode(x[1, 3]))
    assert quantizer.decode(codes).shape == (2, 5, 12)


def test_encode_takes_no_frames() -> None:
    assert _make().encode(torch.empty(0, 12)).shape == (0, 4)


def test_encode_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, x = _make(), torch.randn(20, 12)
    codes = quantizer.encode(x)
    monkeypatch.setattr(base, "_CPU_SCORES", 3 * 64)
    assert_equal(quantizer.encode(x), codes)


def test_encode_ignores_autocast() -> None:
    quantizer, x = _make(), torch.randn(500, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = quantizer.encode(x)
    assert_equal(codes, quantizer.encode(x))


def test_encode_follows_the_weights() -> None:
    quantizer, x = _make(), torch.randn(50, 12)
    before = quantizer.encode(x)
    with torch.no_grad():
        quantizer.centers.mul_(-1.0)
    after = quantizer.encode(x)
    assert not torch.equal(before, after)
    fresh = _make()
    fresh.load_state_dict(quantizer.state_dict())
    assert_equal(fresh.encode(x), after)


def test_normalization_is_undone_by_decoding() -> None:
    quantizer, plain = _make(normalize=True), _make()
    plain.load_state_dict(quantizer.state_dict(), strict=False)
    standardized = torch.randn(50, 12)
    x = standardized * (quantizer.std + 1e-5) + quantizer.mean
    codes = quantizer.encode(x)
    assert_equal(codes, plain.encode(standardized))
    assert_close(quantizer.decode(codes), plain.decode(codes) * (quantizer.std + 1e-5) + quantizer.mean)


def test_product_quantizer_has_the_same_sums() -> None:
    quantizer = _make(normalize=True)
    codes = torch.randint(16, (30, 4))
    product = create_product_quantizer(quantizer)
    assert_close(product.decode(codes[:, ::2] * 16 + codes[:, 1::2]), quantizer.decode(codes))


def test_product_quantizer_draws_no_random_numbers() -> None:
    quantizer = _make()
    state = torch.get_rng_state()
    create_product_quantizer(quantizer)
    assert_equal(torch.get_rng_state(), state)


def test_product_quantizer_of_large_codebooks_raises_error() -> None:
    with pytest.raises(ValueError, match=r"at most 256 .*, but is 1024 instead"):
        create_product_quantizer(MultiCodebookQuantizer(4, 32, 2))


@pytest.mark.parametrize("sizes", [(3, 4), (0, 4), (4, 6)])
def test_sizes_that_are_no_power_of_two_raise_error(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be a power of two, but is [306] instead"):
        MultiCodebookQuantizer(8, *sizes)


def test_frames_of_another_width_raise_error() -> None:
    with pytest.raises(ValueError, match=r"`x` must be \(\.\.\., 12\), but has shape \(2, 13\)"):
        _make().encode(torch.randn(2, 13))

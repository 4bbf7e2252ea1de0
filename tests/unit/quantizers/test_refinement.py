from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spear_plugin.quantizers import refinement
from spear_plugin.quantizers.refinement import compute_entry_products, refine_codes
from tests.common import assert_close, assert_equal


def _make(num_codebooks: int, codebook_size: int, dim: int = 12, num_frames: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames, entries and first choices."""
    torch.manual_seed(7)
    entries = torch.randn(num_codebooks, codebook_size, dim)
    return torch.randn(num_frames, dim) * 3, entries, torch.randint(codebook_size, (num_frames, num_codebooks))


def _errors(x: Tensor, entries: Tensor, codes: Tensor) -> Tensor:
    decoded = entries[torch.arange(len(entries)), codes].sum(dim=1)
    return (x - decoded).square().sum(dim=-1)


def _refine(x: Tensor, entries: Tensor, codes: Tensor, num_refinements: int, *, skip_settled: bool = True) -> Tensor:
    scores = entries.square().sum(dim=-1) - 2.0 * torch.einsum("bd,nkd->bnk", x, entries)
    products = compute_entry_products(entries)
    return refine_codes(codes, scores, products, num_refinements, skip_settled=skip_settled)


def test_entry_products_are_those_of_different_codebooks() -> None:
    _, entries, _ = _make(8, 4)
    products = compute_entry_products(entries)
    expected = 2.0 * torch.einsum("nkd,mld->nkml", entries, entries)
    expected[torch.arange(8), :, torch.arange(8)] = 0.0
    assert_close(products.cross, expected.reshape(32, 32))
    assert_close(products.square_norms, entries.square().sum(dim=-1).flatten())


def test_entry_products_reuse_the_memory_of_others() -> None:
    _, entries, _ = _make(8, 4)
    others = compute_entry_products(torch.randn_like(entries))
    address = others.cross.data_ptr()
    products = compute_entry_products(entries, out=others)
    assert products.cross.data_ptr() == address
    assert_equal(products.cross, compute_entry_products(entries).cross)


@pytest.mark.parametrize("sizes", [(1, 256), (2, 16), (2, 4), (4, 2)])
def test_small_searches_are_exhaustive(sizes: tuple[int, int]) -> None:
    # No more options than the search keeps, or a single codebook: the result is the best of all codes.
    num_codebooks, codebook_size = sizes
    if codebook_size == 16:
        codebook_size = 8
    x, entries, codes = _make(num_codebooks, codebook_size)
    everything = torch.cartesian_prod(*[torch.arange(codebook_size)] * num_codebooks).view(-1, num_codebooks)
    errors = torch.stack([_errors(x, entries, e.expand_as(codes)) for e in everything])
    assert_equal(_refine(x, entries, codes, 1), everything[errors.argmin(dim=0)])


def test_orthogonal_codebooks_are_searched_exactly() -> None:
    basis = torch.linalg.qr(torch.randn(16, 16))[0].view(8, 2, 16)
    entries = torch.randn(8, 32, 2) @ basis
    x, codes = torch.randn(40, 16), torch.randint(32, (40, 8))
    best = torch.stack([torch.cdist(x @ b.T, e @ b.T).argmin(dim=-1) for b, e in zip(basis, entries, strict=True)])
    assert_equal(_refine(x, entries, codes, 1), best.T)


@pytest.mark.parametrize("sizes", [(2, 256), (4, 16), (8, 8), (16, 4), (32, 2), (64, 16)])
def test_all_sizes_lower_the_error_of_every_frame(sizes: tuple[int, int]) -> None:
    x, entries, codes = _make(*sizes, dim=2048)  # nearly orthogonal codebooks
    refined = _refine(x, entries, codes, 2)
    assert 0 <= int(refined.min()) <= int(refined.max()) < sizes[1]
    assert (_errors(x, entries, refined) < _errors(x, entries, codes)).all()


def test_settled_frames_may_be_left_alone() -> None:
    x, entries, codes = _make(8, 64, dim=256)
    assert_equal(_refine(x, entries, codes, 5), _refine(x, entries, codes, 5, skip_settled=False))
    assert not torch.equal(_refine(x, entries, codes, 1), _refine(x, entries, codes, 5))


def test_codes_do_not_depend_on_the_frames_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    x, entries, codes = _make(8, 16)
    together = _refine(x, entries, codes, 2)
    monkeypatch.setattr(refinement, "_CPU_LOOKUPS", 1)
    assert_equal(_refine(x, entries, codes, 2), together)


def test_unused_entries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, entries, codes = _make(16, 64)
    expected = _refine(x, entries, codes, 2)
    monkeypatch.setattr(refinement, "_drop_unused", lambda options, entries: (options, entries))
    assert_equal(_refine(x, entries, codes, 2), expected)


@pytest.mark.parametrize("num_options", [1, 16, 256, 1024])
def test_the_lowest_scores_are_kept_exactly(num_options: int) -> None:
    scores = torch.randn(20, 3, num_options) * 1e3
    scores[0] = torch.tensor(float("inf")).nextafter(torch.tensor(0.0))
    count = min(num_options, 16)
    values, places = refinement._keep_best(scores, count)
    assert_equal(values, scores.gather(-1, places))
    assert_equal(values.sort(dim=-1).values, scores.sort(dim=-1).values[..., :count])
    assert places.sort(dim=-1).values.diff(dim=-1).ne(0).all()

"""The reference is the update of one code after the other (SpidR, section 3.2)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spear_plugin.models.spidr import CodebookStatistics, OnlineCodebooks
from spear_plugin.models.spidr.codebook import sum_by_product
from tests.common import assert_close, assert_equal


def create_codebooks(*, decay: float = 0.9) -> tuple[OnlineCodebooks, Tensor]:
    torch.manual_seed(0)
    codebooks = OnlineCodebooks(3, 7, 4, decay=decay)
    codebooks.counts.copy_(1.0 + torch.rand((3, 7)))
    # With few frames, some codes get none.
    return codebooks, torch.randn((3, 9, 4))


def test_frames_are_assigned_to_the_nearest_code() -> None:
    codebooks, frames = create_codebooks()
    centroids = codebooks.sums / codebooks.counts[:, :, None]
    expected = (frames[:, :, None] - centroids[:, None]).norm(dim=3).argmin(dim=2)
    assert_equal(codebooks.assign(frames), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(codebooks.assign(frames), expected)


def test_update_moves_each_code_towards_its_frames() -> None:
    codebooks, frames = create_codebooks()
    labels = codebooks.assign(frames)
    sums, counts = codebooks.sums.clone(), codebooks.counts.clone()
    codebooks.update(CodebookStatistics.of(frames, labels, 7))
    num_unused = 0
    for k in range(3):
        for v in range(7):
            mine = frames[k][labels[k] == v]
            num_unused += len(mine) == 0
            if len(mine):
                sums[k, v] = 0.9 * sums[k, v] + 0.1 * mine.sum(dim=0)
                counts[k, v] = 0.9 * counts[k, v] + 0.1 * len(mine)
    assert 0 < num_unused < 21
    assert_close(codebooks.sums, sums)
    assert_close(codebooks.counts, counts)


def test_codes_without_frames_stay_bit_by_bit() -> None:
    codebooks, frames = create_codebooks()
    labels = torch.full((3, 9), 2)
    before = codebooks.sums.clone()
    codebooks.update(CodebookStatistics.of(frames, labels, 7))
    is_same = (codebooks.sums == before).all(dim=2)
    assert is_same.tolist() == [[v != 2 for v in range(7)]] * 3


@pytest.mark.parametrize("decay", [1.0, 1.5])
def test_codebooks_without_decay_stay_as_they_are(decay: float) -> None:
    codebooks, frames = create_codebooks(decay=decay)
    before = codebooks.sums.clone()
    codebooks.update(CodebookStatistics.of(frames, codebooks.assign(frames), 7))
    assert_equal(codebooks.sums, before)


def test_statistics_of_processes_are_summed_in_one_tensor() -> None:
    codebooks, frames = create_codebooks()
    labels = codebooks.assign(frames)
    whole = CodebookStatistics.of(frames, labels, 7)
    parts = [CodebookStatistics.of(frames[:, part], labels[:, part], 7) for part in (slice(0, 5), slice(5, 9))]
    summed = parts[0].packed + parts[1].packed  # what an all-reduce does
    parts[0].packed.copy_(summed)
    assert_close(parts[0].sums, whole.sums)
    assert_equal(parts[0].counts, whole.counts)
    assert whole.packed.numel() == 3 * 7 * (1 + 4)


def test_the_sums_of_a_gpu_are_those_of_the_host() -> None:
    codebooks, frames = create_codebooks()
    labels = codebooks.assign(frames)
    expected = CodebookStatistics.of(frames, labels, 7).sums
    assert_close(sum_by_product(frames, labels, 7), expected, atol=1e-6, rtol=1e-6)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(sum_by_product(frames, labels, 7), expected, atol=1e-6, rtol=1e-6)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_first_codes_have_the_scale_that_is_asked_for() -> None:
    torch.manual_seed(0)
    standard = OnlineCodebooks(2, 50, 4, decay=0.9)
    assert_close(standard.sums.mean(dim=1), torch.zeros(2, 4))
    assert_close(standard.sums.std(dim=1, correction=0), torch.ones(2, 4), atol=1e-4)
    torch.manual_seed(0)
    assert_equal(OnlineCodebooks(2, 50, 4, decay=0.9, initial_scale=0.3).sums, 0.3 * standard.sums)

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from spear_plugin.evaluation import (
    cluster_purity,
    count_pairs,
    phone_normalized_mutual_information,
    phone_purity,
    unit_bitrate,
    unit_quality,
)
from tests.common import GOLDEN_FOLDER

NUM_PHONES, NUM_UNITS = 6, 10


def golden_sequences() -> list[tuple[Tensor, Tensor]]:
    """Return phones at 100 Hz and units at 50 Hz of each recording that the authors' code was given."""
    recordings = json.loads((GOLDEN_FOLDER / "spidr" / "results.json").read_text())["units_quality_in"]
    return [
        (torch.tensor([int(phone.removeprefix("p")) for phone in phones]), torch.tensor(units))
        for phones, units in recordings.values()
    ]


def golden_counts() -> Tensor:
    return torch.stack(
        [
            count_pairs(phones, units.repeat_interleave(2), num_phones=NUM_PHONES, num_units=NUM_UNITS)
            for phones, units in golden_sequences()
        ]
    ).sum(dim=0)


def test_quality_is_that_of_the_authors_code() -> None:
    expected = json.loads((GOLDEN_FOLDER / "spidr" / "results.json").read_text())["units_quality_out"]
    quality = unit_quality(golden_counts(), [units for _, units in golden_sequences()], frame_rate_hz=50.0)
    assert quality.pnmi == pytest.approx(expected["pnmi"], abs=1e-6)
    assert quality.phone_purity == pytest.approx(expected["phone_purity"], abs=1e-6)
    assert quality.cluster_purity == pytest.approx(expected["cluster_purity"], abs=1e-6)
    assert quality.perplexity == pytest.approx(expected["codebook_perplexity"], rel=1e-6)
    assert quality.num_active == expected["active_codewords"]
    assert quality.bitrate == pytest.approx(expected["bitrate"], rel=1e-9)


def test_pairs_are_counted_one_by_one() -> None:
    expected = Counter(
        (int(phone), int(units[moment // 2]))
        for phones, units in golden_sequences()
        for moment, phone in enumerate(phones)
    )
    counts = golden_counts()
    assert {(p, v): int(counts[p, v]) for p, v in counts.nonzero().tolist()} == expected


@pytest.mark.parametrize(
    ("counts", "pnmi", "by_unit", "by_phone"),
    [
        ([[5, 0], [0, 5]], 1.0, 1.0, 1.0),  # a unit for each phone
        ([[4, 4], [4, 4]], 0.0, 0.5, 0.5),  # units know nothing
        ([[3, 3, 0, 0], [0, 0, 3, 3]], 1.0, 1.0, 0.5),  # two units for each phone
        ([[8], [2]], 0.0, 0.8, 1.0),  # one unit for all
        ([[1, 2]], 0.0, 1.0, 2 / 3),  # one phone, which there is nothing to tell of
    ],
)
def test_information_and_purities_of_plain_cases(
    counts: list[list[int]], pnmi: float, by_unit: float, by_phone: float
) -> None:
    table = torch.tensor(counts)
    assert phone_normalized_mutual_information(table) == pytest.approx(pnmi, abs=1e-12)
    assert phone_purity(table) == pytest.approx(by_unit)
    assert cluster_purity(table) == pytest.approx(by_phone)


def test_bitrate_counts_runs_and_not_across_recordings() -> None:
    units = [torch.tensor([3, 3, 1, 1]), torch.tensor([1, 1, 1, 1])]
    # Three runs in 8 frames of 20 ms, two bits each.
    assert unit_bitrate(units, frame_rate_hz=50.0, num_units=4) == pytest.approx(3 * math.log2(4) / 0.16)


def test_as_many_phones_as_units_are_needed() -> None:
    with pytest.raises(ValueError, match=r"`phones` must be of the shape of the units \(3,\), but have \(2,\)"):
        count_pairs(torch.zeros(2).long(), torch.zeros(3).long(), num_phones=1, num_units=1)

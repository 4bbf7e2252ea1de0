from __future__ import annotations

import torch

from spear_plugin.models.spear.fbank import compute_fbank
from tests.common import assert_close, load_golden


def test_fbank_equals_the_authors_features() -> None:
    golden = load_golden("spear/fbank")
    fbank, lengths = compute_fbank(golden["wav"][None], torch.tensor([48000]))
    assert lengths.tolist() == [300]
    assert_close(fbank[0], golden["fbank"], atol=1e-3, rtol=0)

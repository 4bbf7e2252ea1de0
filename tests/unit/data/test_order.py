from __future__ import annotations

import numpy as np

from spear_plugin.data.order import shuffle_by_hash
from spear_plugin.data.text_fields import hash_text


def test_ids_have_a_random_order_that_depends_on_themselves_and_the_seed() -> None:
    ids = np.array([f"POD{number:06d}" for number in range(10_000)])
    hashes = np.array([hash_text(id_) for id_ in ids.tolist()])
    order = shuffle_by_hash(hashes, "frames", 1)
    assert sorted(order.tolist()) == list(range(10_000))

    backwards = shuffle_by_hash(hashes[::-1], "frames", 1)
    assert (ids[::-1][backwards] == ids[order]).all()

    # Uniform and independent: among the first half as many even numbers as odd ones, places without correlation.
    assert abs(int((order[:5000] % 2).sum()) - 2500) < 150
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    other = shuffle_by_hash(hashes, "frames", 2)
    assert abs(np.corrcoef(np.argsort(order), np.argsort(other))[0, 1]) < 0.04

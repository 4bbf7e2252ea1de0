"""How well units agree with phones. Letters: T frames, M moments, P phones, V units."""

from __future__ import annotations

from collections.abc import Collection

import torch

from recipes.abx.items import PhoneCorpus, phone_moments
from recipes.frame_readers import FrameReader
from spear_plugin.evaluation import UnitQuality, count_pairs, unit_quality


def measure_units(reader: FrameReader, corpus: PhoneCorpus, ignored_phones: Collection[str]) -> UnitQuality:
    """Compare units with phones every 10 ms; silence is a phone of its own, as in the paper.

    Args:
        reader: Of units.
        corpus: Their recordings.
        ignored_phones: Labels whose time is left out.
    """
    assert reader.num_units is not None
    names = sorted({segment.phone for segments in corpus.alignment.values() for segment in segments})
    numbers = {name: number for number, name in enumerate(name for name in names if name not in ignored_phones)}
    counts = torch.zeros((len(numbers), reader.num_units), dtype=torch.int64)
    sequences = []
    for row, layers in reader.read(corpus.rows):
        units = layers[0][:, 0].long()
        sequences.append(units)
        # (M,) moments, each with the unit of the frame that is nearest
        times, phones = phone_moments(corpus.alignment[row.id], numbers, row.duration)
        nearest = reader.timing.nearest_frames(times, units.numel())
        counts += count_pairs(phones, units[nearest], num_phones=len(numbers), num_units=reader.num_units)
    return unit_quality(counts, sequences, frame_rate_hz=reader.timing.rate_hz)

"""A corpus whose phones are single frames, stores of its features and units, and ABX errors by their definition."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.feature_writer import FeatureStoreWriter, StoredFeatures
from spear_plugin.data.features import FeatureStoreMeta
from spear_plugin.data.manifest import ManifestRow, read_manifest, rows_digest, write_manifest

PHONES: Final = ("AA", "IY", "UW")


def write_toy_corpus(folder: Path, *, num_rows: int = 12, num_speakers: int = 2) -> dict[str, list[Segment]]:
    """Write recordings that are not there, of phones of 50 ms each in random order; their ids have blanks."""
    generator = np.random.default_rng(0)
    rows, alignment = [], {}
    for number in range(num_rows):
        phones = ["SIL", *generator.choice(PHONES, 8).tolist(), "SIL"]
        id_ = f"clip {number}"
        alignment[id_] = [Segment(round(0.05 * i, 2), round(0.05 * i + 0.05, 2), p, "") for i, p in enumerate(phones)]
        speaker = f"s{number % num_speakers}"
        rows.append(
            ManifestRow(
                id=id_,
                path=folder / f"{number}.wav",
                num_samples=8000,
                sample_rate=16_000,
                domain="speech",
                speaker=speaker,
            )
        )
    write_manifest(folder / "clips.tsv", rows)
    write_alignment(folder / "clips.alignment.tsv", alignment)
    return alignment


def write_store(folder: Path, corpus: Path, frames: Mapping[str, Tensor], *, pooling: str = "none") -> Path:
    """Write features (L, T, D), or units (T,), at 20 Hz, one frame in the middle of each phone of the toy corpus."""
    is_of_units = next(iter(frames.values())).dtype == torch.int16
    meta = FeatureStoreMeta(
        source="test",
        layers="last" if is_of_units else list(range(next(iter(frames.values())).size(0))),
        pooling=pooling,
        dtype="int16" if is_of_units else "float32",
        file_format="safetensors",
        dim=1 if is_of_units else next(iter(frames.values())).size(-1),
        frame_rate_hz=20.0,
        first_centre=0.025,
        manifest=rows_digest(read_manifest(corpus / "clips.tsv")),
        max_shard_seconds=600.0,
        num_shards=1,
        num_units=4 if is_of_units else None,
    )
    writer = FeatureStoreWriter(folder, meta, list(frames))
    writer.write_shard(0, {id_: StoredFeatures(values, values.size(-1)) for id_, values in frames.items()})
    writer.finish()
    return folder


def draw_frames(alignment: Mapping[str, Sequence[Segment]], *, dim: int = 5) -> dict[str, Tensor]:
    """Return (2, T, D): a layer that tells the phones apart, and one that does not."""
    torch.manual_seed(1)
    known = {id_: torch.eye(dim)[number_phones(segments)] for id_, segments in alignment.items()}
    return {id_: torch.stack([frames, torch.randn(frames.shape)]) for id_, frames in known.items()}


def number_phones(segments: Sequence[Segment]) -> list[int]:
    return [PHONES.index(segment.phone) if segment.phone in PHONES else len(PHONES) for segment in segments]


def naive_error(
    alignment: Mapping[str, Sequence[Segment]],
    speakers: Mapping[str, str],
    frames: Mapping[str, Tensor],
    *,
    has_context: bool,
    is_across: bool,
) -> float:
    """Return the error by its definition, on one frame for each phone."""
    groups = defaultdict(list)  # numbers of frames by context, speaker and phone
    all_frames: list[Tensor] = []
    for id_, segments in alignment.items():
        for index in range(1, len(segments) - 1):
            before, segment, after = segments[index - 1 : index + 2]
            context = (before.phone, after.phone) if has_context else ()
            groups[context, speakers[id_], segment.phone].append(len(all_frames))
            all_frames.append(frames[id_][index])
    directions = torch.nn.functional.normalize(torch.stack(all_frames).double(), dim=1)
    angles = (directions @ directions.T).clamp(-1, 1).acos().numpy()
    cells = defaultdict(list)  # by pair of phones and speaker of A and B
    for (context, speaker, a), (other_context, other_speaker, b) in itertools.product(groups, groups):
        if a == b or context != other_context or speaker != other_speaker:
            continue
        for x_speaker in sorted(set(speakers.values())):
            if (x_speaker != speaker) == is_across and (xs := groups.get((context, x_speaker, a))):
                wrong = [
                    float(angles[x, y] > angles[x, z]) + 0.5 * float(angles[x, y] == angles[x, z])
                    for x, y, z in itertools.product(xs, groups[context, speaker, a], groups[context, speaker, b])
                    if x != y
                ]
                if wrong:
                    cells[a, b, speaker].append(np.mean(wrong))
    pairs = defaultdict(list)
    for (a, b, _), errors in cells.items():
        pairs[a, b].append(np.mean(errors))
    return float(np.mean([np.mean(errors) for errors in pairs.values()]))

"""Frames from the middle of phones, and where t-SNE puts them. Letters: P phones, D width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from recipes.frame_readers import FrameReader
from recipes.gallery.config import GalleryConfig
from spear_plugin.data.alignments import SILENCE_PHONE, read_alignment
from spear_plugin.data.manifest import ManifestRow, Seconds, read_manifest

_KINDS: Final = {
    "vowels": "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
    "nasals": "M N NG",
    "approximants": "L R W Y",
    "fricatives": "DH F HH S SH TH V Z ZH CH JH",
    "stops": "B D G K P T",
    "silence": SILENCE_PHONE,
}
_KIND_OF: Final = {phone: kind for kind, phones in _KINDS.items() for phone in phones.split()}

_NUM_COMPONENTS: Final = 30  # as usual before t-SNE, which looks at distances alone


@final
@dataclass(frozen=True)
class PhonePoint:
    """The middle of a phone in a recording."""

    row: ManifestRow
    time: Seconds
    kind: str
    """Vowels, nasals, ..., or silence."""


def choose_points(config: GalleryConfig) -> list[PhonePoint]:
    """Return the phones that are drawn, the same for all sources.

    Raises:
        AlignmentFileError: If the alignment cannot be read.
        ManifestError: If the manifest cannot be read.
        RecipeError: If no recording has an English phone.
    """
    alignment = read_alignment(config.alignment_path)
    points = [
        PhonePoint(row, 0.5 * (segment.start + segment.end), kind)
        for row in read_manifest(config.corpus.manifest_path)
        for segment in alignment.get(row.id, ())
        if (kind := _KIND_OF.get(segment.phone.rstrip("012"))) is not None
    ]
    if not points:
        raise RecipeError(
            f"{config.alignment_path}: has no phone (ARPABET) of a recording of {config.corpus.manifest}. Make the "
            "alignment with `recipes.corpus.align`."
        )
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(config.common.seed))
    return [points[index] for index in order[: config.frames.max_frames].tolist()]


def read_points(reader: FrameReader, layer: int, points: Sequence[PhonePoint]) -> NDArray[np.float32]:
    """Return the frames (P, D) nearest to the points.

    Raises:
        RecipeError: If the source has no such layer, or a recording has no usable audio.
    """
    numbers = list(reader.layers)
    if layer > len(numbers):
        raise RecipeError(f"`layer` must be at most {len(numbers)}, the layers of the source, but is {layer}.")
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, point in enumerate(points):
        by_id[point.row.id].append(index)
    rows = list({point.row.id: point.row for point in points}.values())
    frames: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(points)
    for row, layers in reader.read(rows):
        chosen = layers[layer - 1]  # (T, D); 0 is the last
        indices = by_id[row.id]
        times = torch.tensor([points[index].time for index in indices])
        nearest = chosen[reader.timing.nearest_frames(times, chosen.size(0))].numpy()
        for index, frame in zip(indices, nearest, strict=True):
            frames[index] = frame
    return np.stack(frames)


def place_points(frames: NDArray[np.float32], *, perplexity: float, seed: int) -> NDArray[np.float32]:
    """Return frames (P, D) as points (P, 2) of t-SNE, which keeps neighbours together and no distances."""
    scaled = StandardScaler().fit_transform(frames)
    num_components = min(_NUM_COMPONENTS, *scaled.shape)
    reduced = PCA(num_components, random_state=seed).fit_transform(scaled)
    plane = TSNE(2, perplexity=min(perplexity, len(frames) - 1.0), random_state=seed, init="pca")
    return np.asarray(plane.fit_transform(reduced), dtype=np.float32)


def group_points(points: Sequence[PhonePoint], placed: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
    """Return the points (P, 2) of each kind of phone, in a fixed order."""
    kinds = np.array([point.kind for point in points])
    return {kind: placed[kinds == kind] for kind in _KINDS}

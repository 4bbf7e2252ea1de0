"""What the environment of fastabx gets to read.

A folder with::

    request.json        what is to be done; see the module's fastabx_program
    items.item          the items
    spans.npy           first frame and number of frames of each item, (I, 2) int64
    layer-00.bin, ...   the frames of all recordings of a layer one after the other, (M, D) float32

Letters: I items, M frames of all recordings, D width.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from recipes.abx.items import Item, PhoneCorpus, write_items
from recipes.frame_readers import FrameReader

_REQUEST_FILE: Final = "request.json"


def write_exchange(
    folder: Path,
    reader: FrameReader,
    corpus: PhoneCorpus,
    settings: dict[str, Any],
    advance: Callable[[], None],
) -> None:
    """Write everything.

    Args:
        folder: An empty folder.
        reader: What the items are cut from.
        corpus: The items.
        settings: What the request says beside files and layers.
        advance: Called after each recording.

    Raises:
        RecipeError: If frames are not finite.
    """
    items_of_row = _group_items(corpus.items)
    spans = np.zeros((len(corpus.items), 2), dtype=np.int64)
    dims: list[int] = []
    num_frames = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_layer_path(folder, i).open("wb")) for i in range(len(reader.layers))]
        for row, layers in reader.read([row for row in corpus.rows if row.id in items_of_row]):
            indices = items_of_row[row.id]
            first, last = _cut_items(reader, [corpus.items[index] for index in indices], layers[0].size(0))
            spans[indices] = torch.stack([first + num_frames, last - first + 1], dim=1).numpy()
            num_frames += layers[0].size(0)
            dims = [layer.size(1) for layer in layers]
            for file, layer in zip(files, layers, strict=True):
                if not layer.isfinite().all():
                    raise RecipeError(f"{row.path}: features must be finite numbers, but are not.")
                file.write(layer.float().contiguous().numpy().tobytes())
            advance()
    np.save(folder / "spans.npy", spans)
    write_items(folder / "items.item", corpus.items)
    layers_record = [{"file": _layer_path(folder, index).name, "dim": dim} for index, dim in enumerate(dims)]
    (folder / _REQUEST_FILE).write_text(json.dumps({**settings, "layers": layers_record}), encoding="utf-8")


def _group_items(items: Sequence[Item]) -> dict[str, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.row.id].append(index)
    return groups


def _layer_path(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:02d}.bin"


def _cut_items(reader: FrameReader, items: Sequence[Item], num_frames: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last frame (I,) of each item of a recording."""
    onsets = torch.tensor([item.onset for item in items], dtype=torch.float64)
    offsets = torch.tensor([item.offset for item in items], dtype=torch.float64)
    return reader.timing.frames_between(onsets, offsets, num_frames)

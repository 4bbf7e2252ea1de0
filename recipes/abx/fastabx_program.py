"""ABX errors of the layers in folders that recipes.abx.exchange wrote; standard input names the folders, one a line.

Runs in .venv-abx and sees none of our modules. Prints a JSON object for each layer: ``within``, and ``across`` or null.
Cells and means are those of ZeroSpeech 2021: errors of cells are averaged over contexts, then over speakers, then over
pairs of phones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from fastabx import Dataset, InMemoryAccessor, Score, Subsampler, Task

_CONTEXT: Final = ("prev-phone", "next-phone")


def score_folder(folder: Path) -> None:
    """Print the errors of a folder's layers."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    phones = ["#phone", *_CONTEXT, "speaker"]
    labels = pl.read_csv(folder / "items.item", separator=" ", infer_schema=False).select(phones)
    spans = dict(enumerate((first, first + length) for first, length in np.load(folder / "spans.npy").tolist()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for layer in request["layers"]:
        frames = np.fromfile(folder / layer["file"], dtype=np.float32).reshape(-1, layer["dim"])
        dataset = Dataset(labels, InMemoryAccessor(spans, torch.from_numpy(frames), device))
        across = compute_error(dataset, request, is_across=True) if request["across"] else None
        print(json.dumps({"within": compute_error(dataset, request, is_across=False), "across": across}), flush=True)


def compute_error(dataset: Dataset, request: dict[str, Any], *, is_across: bool) -> float:
    """Return the error in [0, 1], within or across speakers."""
    context = list(_CONTEXT) if request["context"] == "within" else []
    by, across = (context, ["speaker"]) if is_across else ([*context, "speaker"], None)
    subsampler = Subsampler(
        request["max_group_size"], request["max_x_across"] if is_across else None, seed=request["seed"]
    )
    task = Task(dataset, on="#phone", by=by or None, across=across, subsampler=subsampler)
    levels: list[tuple[str, ...] | str] = [tuple(context), "speaker"] if context else ["speaker"]
    error: float = Score(task, request["distance"], progress=False).collapse(levels=levels)
    return error


if __name__ == "__main__":
    for line in sys.stdin:
        score_folder(Path(line.rstrip("\n")))

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import codebook_entropies
from spear_plugin.quantizers import (
    FrameQuantizer,
    MultiCodebookQuantizer,
    quantizer_identity,
    relative_error,
    relative_errors_by_num_codebooks,
    relative_errors_by_num_refinements,
)


def write_report(
    path: Path,
    quantizer: FrameQuantizer,
    frames: Tensor,
    others: dict[int, FrameQuantizer],
    *,
    provenance: dict[str, object],
) -> dict[str, object]:
    """Write and return what a quantizer does to frames (B, D) that it has not seen.

    Errors are relative: squared error over squared distance from the mean, in the scale of the codebooks. The errors by
    number of codebooks are those of the trained quantizers of each size, ``others`` among them, not those of the first
    codebooks of a larger one (which are listed apart). The errors by number of refinements are of multi-codebook
    quantizers only.
    """
    quantizers = others | {quantizer.num_codebooks: quantizer}
    errors = {n: relative_error(quantizers[n], frames) for n in sorted(quantizers)}
    entropies, used = _measure_usage(quantizer.encode(frames.to(quantizer.device)), quantizer.codebook_size)
    report: dict[str, object] = {
        **provenance,
        "quantizer": quantizer_identity(quantizer),
        "num_valid_frames": len(frames),
        "relative_error": errors[quantizer.num_codebooks],
        "error_by_num_codebooks": errors,
        "error_of_first_codebooks": relative_errors_by_num_codebooks(quantizer, frames),
        "entropy_bits": entropies,
        "num_used_entries": used,
    }
    if isinstance(quantizer, MultiCodebookQuantizer):
        report["error_by_num_refinements"] = relative_errors_by_num_refinements(quantizer, frames)

    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    return report


def _measure_usage(codes: Tensor, codebook_size: int) -> tuple[list[float], list[int]]:
    """Return, for each codebook of codes (B, K), the entropy of its entries in bits and how many of them occur."""
    counts = torch.stack([torch.bincount(column, minlength=codebook_size) for column in codes.long().T])
    entropies = codebook_entropies(counts) / math.log(2.0)

    return [round(value, 4) for value in entropies.tolist()], (counts > 0).sum(dim=-1).tolist()

"""Show how evenly the codebooks of a code store are used.

    python -m recipes.mvq.stats STORE
    python -m recipes.mvq.stats STORE --json

Entropy is in bits; perplexity is the number of entries that, used alike, would have the same entropy. A codebook with
few used entries has collapsed and teaches little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from recipes.code_counts import count_codes
from recipes.mvq.console import create_parser, print_json, run_command, watch_shards
from spear_plugin.data.codes import CodeStoreIdentity
from spear_plugin.evaluation import codebook_entropies


@final
@dataclass(frozen=True, kw_only=True)
class CodebookStatistics:
    """How a codebook is used."""

    num_used_entries: int

    usage: float
    """Share of the entries that occur."""

    entropy_bits: float

    perplexity: float


@final
@dataclass(frozen=True, kw_only=True)
class StoreStatistics:
    """What a store holds, and how its codebooks are used."""

    identity: CodeStoreIdentity

    num_rows: int

    num_frames: int

    hours: float

    codebooks: list[CodebookStatistics]


def main(arguments: Sequence[str]) -> int:
    """Print the statistics of the store that a command line names; return the exit code."""
    options = create_parser(__doc__).parse_args(arguments)
    statistics = measure_store(options.store)

    if options.json:
        print_json(asdict(statistics))
    else:
        _print_table(options.store, statistics)

    return 0


def measure_store(folder: Path) -> StoreStatistics:
    """Count the codes of a store.

    :raises CodeStoreError: If the store is unfinished or damaged.
    """
    counted = count_codes(folder, watch=watch_shards)
    identity = counted.identity
    num_frames = int(counted.entries[0].sum())

    return StoreStatistics(
        identity=identity,
        num_rows=counted.num_rows,
        num_frames=num_frames,
        hours=num_frames / identity.frame_rate_hz / 3600,
        codebooks=_describe_codebooks(counted.entries),
    )


def _describe_codebooks(counts: NDArray[np.int64]) -> list[CodebookStatistics]:
    entropies = codebook_entropies(torch.from_numpy(counts)).tolist()
    used = (counts > 0).sum(axis=1).tolist()

    return [
        CodebookStatistics(
            num_used_entries=num_used,
            usage=num_used / counts.shape[1],
            entropy_bits=entropy / math.log(2.0),
            perplexity=math.exp(entropy),
        )
        for num_used, entropy in zip(used, entropies, strict=True)
    ]


def _print_table(folder: Path, statistics: StoreStatistics) -> None:
    identity = statistics.identity
    title = (
        f"{folder}: {statistics.num_rows:,} recordings, {statistics.num_frames:,} frames ({statistics.hours:.2f} h) of "
        f"{identity.teacher}"
    )
    bits = math.log2(identity.codebook_size)
    columns = ("codebook", f"entries used, of {identity.codebook_size:,}", "", f"bits, of {bits:.2f}", "perplexity")
    table = Table(*columns, title=title, title_justify="left", show_edge=False)

    for index, codebook in enumerate(statistics.codebooks):
        table.add_row(
            str(index),
            f"{codebook.num_used_entries:,}",
            f"{100 * codebook.usage:.1f} %",
            f"{codebook.entropy_bits:.3f}",
            f"{codebook.perplexity:.1f}",
        )

    Console(soft_wrap=True, highlight=False).print(table)


if __name__ == "__main__":
    run_command(main)

"""Check a code store: every shard in full, and with a manifest also which ids it has and how many frames of each.

    python -m recipes.mvq.verify STORE
    python -m recipes.mvq.verify STORE --manifest speech.tsv --json

The exit code is 0 if the store is sound and 1 if it is not. Ids that encoding left out, listed in STORE/failed.tsv, are
counted and no fault; ids that are not in the manifest are one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from recipes.mvq.console import create_parser, print_json, run_command, watch_shards
from spear_plugin.data.files import abbreviate
from spear_plugin.data.manifest import read_manifest
from spear_plugin.data.verification import StoreFindings, verify_store

_MAX_LINES: Final = 10


def main(arguments: Sequence[str]) -> int:
    """Verify the store that a command line names; return the exit code."""
    parser = create_parser(__doc__)
    parser.add_argument("--manifest", type=Path, help="manifest whose recordings the store should hold")
    options = parser.parse_args(arguments)
    manifest = read_manifest(options.manifest) if options.manifest else None
    findings = verify_store(options.store, manifest, watch=watch_shards)

    if options.json:
        print_json(_summarize(findings))
    else:
        _print_table(options.store, findings)

    if not findings.is_sound:
        faults = ", ".join(f"{len(found)} {name}" for name, found in _list_faults(findings).items() if found)
        print(f"error: {options.store}: the store is not sound: {faults}. Encode again.", file=sys.stderr)

    return 0 if findings.is_sound else 1


def _summarize(findings: StoreFindings) -> dict[str, object]:
    return asdict(findings) | {"sound": findings.is_sound}


def _list_faults(findings: StoreFindings) -> dict[str, list[str]]:
    return {
        "shards missing or damaged": findings.bad_shards,
        "ids twice": findings.duplicate_ids,
        "ids missing": findings.missing_ids,
        "ids not in the manifest": findings.surplus_ids,
        "wrong lengths": findings.wrong_lengths,
    }


def _print_table(store: Path, findings: StoreFindings) -> None:
    table = Table("", "number", "which", title=str(store), title_justify="left", show_edge=False)
    table.add_row("shards", f"{findings.num_shards:,}", "")
    table.add_row("recordings", f"{findings.num_rows:,}", "")
    table.add_row("frames", f"{findings.num_frames:,}", f"at {findings.identity.frame_rate_hz:g} Hz")
    table.add_row("left out by encoding", f"{len(findings.left_out_ids):,}", abbreviate(findings.left_out_ids))
    for name, found in _list_faults(findings).items():
        more = [f"and {len(found) - _MAX_LINES} more"] if len(found) > _MAX_LINES else []
        table.add_row(name, f"{len(found):,}", "\n".join(found[:_MAX_LINES] + more))

    Console(soft_wrap=True, highlight=False).print(table)


if __name__ == "__main__":
    run_command(main)

"""What the commands on code stores share: one-line errors, tables and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console
from rich.progress import track

from spear_plugin.data.codes import CodeStoreError
from spear_plugin.data.manifest import ManifestError

# Results go to stdout; what only accompanies them must not end up in a pipe.
_STDERR: Final = Console(stderr=True)


def run_command(command: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command line to its end with the exit code it returns; expected errors become one line and exit code 1."""
    try:
        code = command(sys.argv[1:])
    except (CodeStoreError, ManifestError, OSError) as ex:
        print(f"error: {ex}", file=sys.stderr)
        code = 1

    sys.exit(code)


def create_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of STORE and --json."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("store", type=Path, help="folder of a code store")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")

    return parser


def watch_shards(shards: Sequence[Path]) -> Iterable[Path]:
    """Go through the files of a store's shards, on a terminal under a progress bar."""
    return track(shards, "Reading shards", console=_STDERR, transient=True, disable=not _STDERR.is_terminal)


def print_json(value: Mapping[str, object]) -> None:
    """Print an object as indented JSON."""
    print(json.dumps(value, indent=2))

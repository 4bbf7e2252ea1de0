"""What the commands on code stores share: one-line errors, tables and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from spear_plugin.data.codes import CodeStoreError
from spear_plugin.data.manifest import ManifestError


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


def print_json(value: Mapping[str, object]) -> None:
    """Print an object as indented JSON."""
    print(json.dumps(value, indent=2))

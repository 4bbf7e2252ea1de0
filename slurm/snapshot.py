"""Which code a job runs: commit and changes saved beside it in any case, the files themselves on request."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from slurm.files import LaunchError, write_atomically


def save_code_state(root: Path, folder: Path, command: list[str]) -> None:
    """Write ``code-TIME.json`` (commit, Python, command) and, where files are changed, ``code-TIME.diff``.

    The patch holds tracked files; the names of new files stand in the JSON. Without git, or outside of a repository,
    the commit is null.
    """
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain") or ""
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    record = {
        "commit": commit.strip() if commit else None,
        "new_files": [line[3:] for line in status.splitlines() if line.startswith("??")],
        "root": str(root),
        "python": sys.executable,
        "command": command,
    }
    write_atomically(folder / f"code-{stamp}.json", json.dumps(record, indent=1) + "\n")
    if diff := _git(root, "diff", "HEAD", "--binary"):
        write_atomically(folder / f"code-{stamp}.diff", diff)


def copy_code(root: Path, folder: Path) -> Path:
    """Copy the files that git tracks, as they are now, to a folder of their own and return it.

    Raises:
        LaunchError: `root` is no git repository.
    """
    names = _git(root, "ls-files", "-z")
    if names is None:
        raise LaunchError(f"{root}: is no git repository, so `--copy-code` does not know what to copy.")
    target = folder / f"code-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():  # not one that was deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None

"""From audio files to manifest rows, in parallel, with account of those that do not decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from recipes.corpus.console import map_parallel
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.data.scan import BadFile, Clip, inspect_clip


def inspect_clips(clips: Sequence[Clip], *, num_workers: int, title: str) -> tuple[list[ManifestRow], list[BadFile]]:
    """Decode every clip and return, in the order of ``clips``, the rows of the good and the list of the bad ones."""
    results = map_parallel(inspect_clip, clips, num_workers=num_workers, title=title)

    rows = [result for result in results if isinstance(result, ManifestRow)]

    return rows, [result for result in results if isinstance(result, BadFile)]


def bad_file_list(manifest: Path) -> Path:
    """Return where the bad files of ``manifest`` are listed: ``X.bad.tsv`` beside ``X.tsv``."""
    return manifest.with_suffix(".bad.tsv")


def write_bad_files(path: Path, bad_files: Iterable[BadFile]) -> None:
    """Write the list with columns path and reason; no bad file, no list."""
    lines = [f"{_printable(str(bad.path))}\t{_printable(bad.reason)}\n" for bad in bad_files]

    if not lines:
        path.unlink(missing_ok=True)

        return

    with atomic_file(path) as temporary:
        temporary.write_text("path\treason\n" + "".join(lines), encoding="utf-8")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

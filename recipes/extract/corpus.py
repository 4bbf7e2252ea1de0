"""The manifest of an extraction: the one that was given, or one of the audio files in a folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fairseq2.gang import Gang
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError

from recipes.common import check_failures
from recipes.extract.config import ExtractCorpusSection
from recipes.failures import FailureLists
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from spear_plugin.data.scan import Clip, find_audio_files, inspect_clip, name_files

_SCAN: Final = "scan"


def find_manifest(section: ExtractCorpusSection, out: Path, gang: Gang) -> Path:
    """Return the manifest of the corpus. That of a folder is made by the first process, once.

    Raises:
        RecipeError: If a folder has no usable file, too many unusable ones, or other files than at the first start.
        AudioFolderError: If a folder holds no audio files.
    """
    if not section.manifest_path.is_dir():
        return section.manifest_path
    manifest = out / "manifest.tsv"
    if gang.rank == 0:
        _scan(section, out, manifest)
    gang.barrier()
    return manifest


def _scan(section: ExtractCorpusSection, out: Path, manifest: Path) -> None:
    folder = section.manifest_path.absolute()
    ids = name_files(find_audio_files(folder), folder)
    failures = FailureLists(out)
    if manifest.exists():
        known = {row.id for row in read_manifest(manifest)} | {id_ for id_, _ in failures.read(_SCAN)}
        if known != set(ids.values()):
            raise RecipeError(
                f"{section.manifest}: holds other files than {manifest} lists. Choose another OUT, or delete this one."
            )
        return

    log.info("{}: decoding {:,} files, for their lengths.", section.manifest, len(ids))
    clips = [Clip(id=id_, path=path, domain="audio") for path, id_ in ids.items()]
    with ThreadPoolExecutor(section.num_read_threads) as pool:
        results = list(pool.map(inspect_clip, clips))
    rows = [result for result in results if isinstance(result, ManifestRow)]
    bad = [
        (clip.id, f"{clip.path}: {result.reason}")
        for clip, result in zip(clips, results, strict=True)
        if not isinstance(result, ManifestRow)
    ]
    for _, problem in bad:
        log.warning("{}", problem)
    check_failures(len(bad), section, out)
    if not rows:
        raise RecipeError(f"{section.manifest}: none of its {len(ids)} files is usable, for example {bad[0][1]}")
    failures.write(_SCAN, bad)
    write_manifest(manifest, rows)

"""Audio files in a folder: found, named, and decoded to rows of a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from spear_plugin.data.archives import ARCHIVE_FORMATS, ArchiveError, scan_archive
from spear_plugin.data.audio import AudioError, inspect_audio
from spear_plugin.data.manifest import Domain, ManifestRow

AUDIO_SUFFIXES: Final = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".g722", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".au", ".caf",
     ".webm", ".wma"}
)  # fmt: skip


class AudioFolderError(ValueError):
    """Raised when a folder holds no audio; the message names the folder and the remedy."""


@final
@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of an audio file before it is opened; fields as in :class:`ManifestRow`."""

    id: str
    path: Path
    domain: Domain
    text: str = ""
    label: str = ""
    speaker: str = ""
    language: str = ""


@final
@dataclass(frozen=True)
class BadFile:
    path: Path

    reason: str
    """One line: the problem and the remedy."""


def find_audio_files(folder: Path) -> list[Path]:
    """Return the files below ``folder`` that end like audio (:data:`AUDIO_SUFFIXES`), sorted.

    :raises AudioFolderError: If the folder is missing or holds no such file.
    """
    _check_folder(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())

    if not paths:
        raise AudioFolderError(f"{folder}: holds no audio file. Known endings are {' '.join(sorted(AUDIO_SUFFIXES))}.")

    return paths


def find_archived_files(folder: Path) -> list[Path]:
    """Return the audio in the tar, zip and Parquet archives below a folder, as paths that lead through them, sorted.

    :raises AudioFolderError: If the folder is missing or holds no such audio, or an archive cannot be used.
    """
    _check_folder(folder)
    archives = sorted(path for path in folder.rglob("*") if path.suffix in ARCHIVE_FORMATS and path.is_file())

    if not (paths := [path for archive in archives for path in _list_members(archive)]):
        known = " ".join(ARCHIVE_FORMATS)
        raise AudioFolderError(f"{folder}: holds no archive with audio files. Archives end in {known}.")

    return paths


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise AudioFolderError(f"{folder}: there is no such folder. Name the folder that holds the audio files.")


def _list_members(archive: Path) -> list[Path]:
    try:
        paths = sorted({archive / member.path for member in scan_archive(archive)})
    except ArchiveError as ex:
        raise AudioFolderError(f"{archive}: {ex}. Restore it, or move it elsewhere.") from ex

    # All that is in a Parquet file's column of audio is audio, however it is named.
    return [path for path in paths if archive.suffix == ".parquet" or path.suffix.lower() in AUDIO_SUFFIXES]


def name_files(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Return stable unique ids: the path relative to ``folder`` without its ending.

    Files that differ only by their ending (``a.wav``, ``a.flac``) keep it.
    """
    ids = {path: path.relative_to(folder).with_suffix("").as_posix() for path in paths}

    counts = Counter(ids.values())

    return {path: id_ if counts[id_] == 1 else path.relative_to(folder).as_posix() for path, id_ in ids.items()}


def inspect_clip(clip: Clip) -> ManifestRow | BadFile:
    """Decode a file to its end."""
    if not str(clip.path).isprintable():
        return BadFile(clip.path, "has a name with tabs, line breaks or bytes that are not UTF-8. Rename the file.")

    try:
        info = inspect_audio(clip.path)
    except (AudioError, OSError) as ex:
        return BadFile(clip.path, str(ex).removeprefix(f"{clip.path}: "))

    return ManifestRow(
        id=clip.id,
        path=clip.path,
        num_samples=info.num_samples,
        sample_rate=info.sample_rate,
        domain=clip.domain,
        text=" ".join(clip.text.split()),
        label=clip.label,
        speaker=clip.speaker,
        language=clip.language,
    )

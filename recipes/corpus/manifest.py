"""A manifest from a folder of audio files: ``python -m recipes.corpus.manifest FOLDER OUT.tsv --domain speech``."""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from recipes.corpus.console import STDERR, CorpusError, default_num_workers, run_command
from recipes.corpus.scan import bad_file_list, inspect_clips, write_bad_files
from recipes.corpus.splits import place
from spear_plugin.data.files import abbreviate
from spear_plugin.data.manifest import DOMAINS, ManifestRow, write_manifest
from spear_plugin.data.scan import BadFile, Clip, find_archived_files, find_audio_files, name_files

_EXAMPLES: Final = """\
examples:
  every recording below clips/ is speech:
    python -m recipes.corpus.manifest clips clips.tsv --domain speech
  transcripts lie beside the recordings (a.wav, a.txt); 5 % go to a validation set without shared speakers:
    python -m recipes.corpus.manifest clips clips.tsv --domain speech --language en --text-from sidecar \\
        --speaker-from top-folder --valid-fraction 0.05 --split-by speaker
  transcripts in one table with lines `id<TAB>text` (or `id,text` in a .csv); an id is a path below the folder, with or
  without its ending:
    python -m recipes.corpus.manifest clips clips.tsv --domain speech --text-from transcripts.tsv
  sound effects sorted into one folder per class, or named CLASS_something.flac:
    python -m recipes.corpus.manifest effects effects.tsv --domain audio --label-from folder
    python -m recipes.corpus.manifest samples samples.tsv --domain audio --label-from stem-prefix

Every file is decoded to its end. Those that fail are listed with the reason in OUT.bad.tsv and left out of the
manifest; the exit code is 0 when at least one file is good.
"""

_NAME_SOURCES: Final = ("folder", "top-folder", "stem-prefix")


def main(arguments: Sequence[str]) -> None:
    """List, decode and write; see ``--help``."""
    options = _parse(arguments)

    clips = _list_clips(options)

    rows, bad_files = inspect_clips(clips, num_workers=options.workers, title="decoding")

    options.out.parent.mkdir(parents=True, exist_ok=True)

    write_bad_files(bad_file_list(options.out), bad_files)

    if not rows:
        raise CorpusError(
            f"{options.folder}: none of {len(clips)} files is good. See the reasons in {bad_file_list(options.out)}."
        )

    for path, part in _partition(rows, options).items():
        write_manifest(path, part)

        Console().print(f"wrote {path} ({len(part)} files)", highlight=False, soft_wrap=True)

    _print_summary(rows, bad_files, bad_file_list(options.out))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.manifest",
        description="List the audio files below a folder, after decoding each, in a manifest that the recipes read.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    parser.add_argument("folder", metavar="FOLDER", type=Path, help="searched with all folders below it")
    parser.add_argument("out", metavar="OUT.tsv", type=Path, help="the manifest to write")
    parser.add_argument("--domain", required=True, choices=DOMAINS, help="decides which teacher's codes are learnt")
    parser.add_argument("--archives", action="store_true", help="list what is in tar, zip and Parquet files instead")
    parser.add_argument("--text-from", metavar="SOURCE", help="'sidecar' (a.txt beside a.wav) or a table (.tsv, .csv)")
    names = f"{', '.join(_NAME_SOURCES)}, or a table (.tsv, .csv)"
    parser.add_argument("--label-from", metavar="SOURCE", help=names)
    parser.add_argument("--speaker-from", metavar="SOURCE", help=names)
    parser.add_argument("--language", default="", help="of all files, for example en")
    parser.add_argument("--valid-fraction", type=float, default=0.0, metavar="X", help="write OUT-train and OUT-valid")
    parser.add_argument(
        "--split-by", choices=("id", "speaker", "label", "text"), default="id",
        help="rows that agree in this field go to the same side (default: id)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=default_num_workers(), metavar="N", help="processes")

    options = parser.parse_args(arguments)

    if not 0 <= options.valid_fraction < 1:
        parser.error(f"--valid-fraction must be at least 0 and below 1, but is {options.valid_fraction}")

    if options.workers < 1:
        parser.error(f"--workers must be at least 1, but is {options.workers}")

    if options.out.suffix != ".tsv":
        parser.error(f"OUT.tsv must end in .tsv, but is {options.out}")

    return options


def _list_clips(options: argparse.Namespace) -> list[Clip]:
    folder = options.folder.absolute()

    find = find_archived_files if options.archives else find_audio_files
    ids = name_files(find(folder), folder)
    texts = _read_texts(options.text_from, ids, folder)

    labels = _read_names("--label-from", options.label_from, ids, folder)

    speakers = _read_names("--speaker-from", options.speaker_from, ids, folder)

    return [
        Clip(
            id=id_,
            path=path,
            domain=options.domain,
            text=texts.get(path, ""),
            label=labels.get(path, ""),
            speaker=speakers.get(path, ""),
            language=options.language,
        )
        for path, id_ in ids.items()
    ]


def _read_texts(source: str | None, ids: dict[Path, str], folder: Path) -> dict[Path, str]:
    if source is None:
        return {}

    if source != "sidecar":
        return _read_table("--text-from", Path(source), ids, folder)

    sidecars = {path: path.with_suffix(".txt") for path in ids}

    texts = {path: _read_sidecar(sidecar) for path, sidecar in sidecars.items() if sidecar.is_file()}

    _warn_of_missing("--text-from sidecar", ids, texts)

    return texts


def _read_sidecar(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as ex:
        raise CorpusError(f"{path}: must be UTF-8 text: {ex}. Convert the file.") from ex


def _read_names(option: str, source: str | None, ids: dict[Path, str], folder: Path) -> dict[Path, str]:
    match source:
        case None:
            return {}
        case "folder":
            return {path: path.parent.name for path in ids}
        case "top-folder":
            return {path: path.relative_to(folder).parts[0] for path in ids if path.parent != folder}
        case "stem-prefix":
            return {path: path.stem.split("_")[0] for path in ids}
        case _:
            return _read_table(option, Path(source), ids, folder)


def _read_table(option: str, table: Path, ids: dict[Path, str], folder: Path) -> dict[Path, str]:
    if table.suffix not in (".tsv", ".csv"):
        choices = "sidecar" if option == "--text-from" else ", ".join(_NAME_SOURCES)

        raise CorpusError(f"{option} must be {choices}, or a table that ends in .tsv or .csv, but is '{table}'.")

    values = _read_pairs(table)

    found = {path: values.get(id_, values.get(path.relative_to(folder).as_posix())) for path, id_ in ids.items()}

    known = {path: value for path, value in found.items() if value is not None}

    if not known:
        raise CorpusError(
            f"{table}: names none of the {len(ids)} files. Its first column must be ids such as "
            f"{abbreviate(list(ids.values()))}."
        )

    _warn_of_missing(f"{option} {table}", ids, known)

    return known


def _read_pairs(table: Path) -> dict[str, str]:
    values: dict[str, str] = {}

    try:
        with table.open(encoding="utf-8", newline="") as stream:
            records = csv.reader(stream) if table.suffix == ".csv" else map(_split_tabs, stream)

            for line_number, record in enumerate(records, start=1):
                if len(record) < 2:
                    raise CorpusError(f"{table}, line {line_number}: must hold an id and a value, but is {record}.")

                values[record[0]] = record[1]
    except UnicodeDecodeError as ex:
        raise CorpusError(f"{table}: must be UTF-8 text: {ex}. Convert the file.") from ex

    return values


def _split_tabs(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _warn_of_missing(source: str, ids: dict[Path, str], found: dict[Path, str]) -> None:
    if missing := [id_ for path, id_ in ids.items() if path not in found]:
        STDERR.print(f"warning: {source} gives nothing for {abbreviate(missing)}", highlight=False, soft_wrap=True)


def _partition(rows: list[ManifestRow], options: argparse.Namespace) -> dict[Path, list[ManifestRow]]:
    if not options.valid_fraction:
        return {options.out: rows}

    valid = [row for row in rows if place(getattr(row, options.split_by) or row.id) < options.valid_fraction]

    if not valid or len(valid) == len(rows):
        raise CorpusError(
            f"--valid-fraction {options.valid_fraction} by {options.split_by} leaves one side of {len(rows)} rows "
            "empty. Choose another fraction or field."
        )

    valid_ids = {row.id for row in valid}

    return {
        options.out.with_stem(options.out.stem + "-train"): [row for row in rows if row.id not in valid_ids],
        options.out.with_stem(options.out.stem + "-valid"): valid,
    }


def _print_summary(rows: list[ManifestRow], bad_files: list[BadFile], bad_list: Path) -> None:
    table = Table("", "files", "hours", show_edge=False)

    for rate, count in sorted(Counter(row.sample_rate for row in rows).items()):
        hours = sum(row.duration for row in rows if row.sample_rate == rate) / 3600

        table.add_row(f"{rate} Hz", str(count), f"{hours:.3f}")

    table.add_row("all", str(len(rows)), f"{sum(row.duration for row in rows) / 3600:.3f}", style="bold")

    table.add_row("bad", str(len(bad_files)), f"see {bad_list}" if bad_files else "")

    Console().print(table)


if __name__ == "__main__":
    run_command(main)

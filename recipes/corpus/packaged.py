"""The demonstration corpora, from Debian packages to manifests: ``python -m recipes.corpus.packaged OUT``.

OUT afterwards::

    speech/{train,valid}.tsv, audio/{train,valid}.tsv    manifests for pre-training, without the probes' test clips
    speech/all.tsv, audio/all.tsv, all.tsv               the same rows together, for encoding
    probe/*.tsv                                          labelled examples, see recipes/corpus/probe_tasks.py
    corpora/NAME.tsv, corpora/NAME.bad.tsv               every good and every bad file of a corpus
    packages/                                            the recordings as the packages hold them
    pieces/                                              music, cut into pieces of ten seconds
    licences/, ATTRIBUTION.md                            who made the recordings, and on which terms
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import soundfile
from rich.console import Console
from rich.table import Table

from recipes.corpus.align import align_rows, write_unaligned
from recipes.corpus.console import default_num_workers, run_command
from recipes.corpus.examples import Example
from recipes.corpus.package_store import PackageStore
from recipes.corpus.packages import write_attribution
from recipes.corpus.probe_tasks import EVENT_CORPORA, write_probe_tasks
from recipes.corpus.scan import bad_file_list, inspect_clips, write_bad_files
from recipes.corpus.sources import CORPORA, DEFAULT, EVERYTHING, GROUPS, SMALL, PackagedCorpus, resolve_corpora
from recipes.corpus.splits import pretrain_split
from spear_plugin.data.alignments import Segment, read_alignment, write_alignment
from spear_plugin.data.audio import inspect_audio, read_audio
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import DOMAINS, ManifestRow, read_manifest, write_manifest
from spear_plugin.data.scan import Clip

Corpora: TypeAlias = Mapping[str, Sequence[ManifestRow]]

# Their rows carry the probes whose test clips pre-training must not see.
_PROBED: Final = ("asterisk_en", "fillets_cs")

_ALIGNED: Final = "asterisk_en"


def main(arguments: Sequence[str]) -> None:
    """Fetch, list and split; see ``--help``."""
    options = _parse(arguments)

    chosen = resolve_corpora(options.corpora)

    store = PackageStore(options.out / "packages", options.out / "licences")

    names = sorted({name for corpus in chosen for name in corpus.packages})

    store.fetch(names)

    write_attribution(options.out / "ATTRIBUTION.md", [store.fetched(name) for name in names])

    corpora = {corpus.name: _list_corpus(corpus, store, options.out, options.workers) for corpus in chosen}

    alignment = _align(
        corpora.get(_ALIGNED, ()), options.out / "corpora" / f"{_ALIGNED}.alignment.tsv", options.workers
    )

    tasks = write_probe_tasks(options.out / "probe", corpora, alignment)

    manifests = write_pretraining_manifests(options.out, corpora, hold_out_events=options.hold_out_events)

    _print_summary(options.out, corpora, manifests, tasks)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.packaged",
        description="Fetch real speech and real sounds that come in Debian packages, and write manifests of them.",
        epilog=_describe_corpora(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    parser.add_argument("out", metavar="OUT", type=Path, help="folder; what is already there is not fetched again")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--corpora",
        metavar="NAME,...",
        type=lambda text: text.split(","),
        default=list(DEFAULT),
        help="corpora or groups, see below",
    )
    choice.add_argument("--small", dest="corpora", action="store_const", const=list(SMALL), help=",".join(SMALL))
    choice.add_argument("--all", dest="corpora", action="store_const", const=list(EVERYTHING), help="every corpus")
    parser.add_argument(
        "--hold-out-events",
        action="store_true",
        help=f"keep the clips of the events probe ({', '.join(EVENT_CORPORA)}) out of pre-training",
    )
    parser.add_argument("--workers", type=int, default=default_num_workers(), metavar="N", help="processes")

    options = parser.parse_args(arguments)

    if options.workers < 1:
        parser.error(f"--workers must be at least 1, but is {options.workers}")

    return options


def _describe_corpora() -> str:
    lines = ["corpora (and the size of their packages, which some share):"]

    lines += [f"  {c.name:18} {c.num_megabytes:4} MB {c.num_hours:5.2f} hours" for c in CORPORA.values()]

    lines += ["groups:", *(f"  {name:9} {', '.join(members)}" for name, members in GROUPS.items())]

    return "\n".join([*lines, f"the default is {','.join(DEFAULT)}: 356 MB, 4.5 hours"])


def _list_corpus(corpus: PackagedCorpus, store: PackageStore, out: Path, num_workers: int) -> list[ManifestRow]:
    path = out / "corpora" / f"{corpus.name}.tsv"

    if path.exists() and path.stat().st_mtime > store.changed_at(corpus.packages):
        return list(read_manifest(path))

    clips = list(corpus.list_clips(store.root.absolute()))

    if corpus.piece_seconds:
        clips = [piece for clip in clips for piece in cut_clip(clip, out.absolute() / "pieces", corpus.piece_seconds)]

    rows, bad_files = inspect_clips(clips, num_workers=num_workers, title=corpus.name)

    path.parent.mkdir(exist_ok=True)

    write_bad_files(bad_file_list(path), bad_files)

    write_manifest(path, rows)

    return rows


def cut_clip(clip: Clip, folder: Path, piece_seconds: float) -> list[Clip]:
    """Write the pieces of a recording to ``folder`` as FLAC, ``ID#N.flac``, at the recording's rate.

    The last piece is up to half as long again, so that none is shorter than half.
    """
    info = inspect_audio(clip.path)

    waveform = read_audio(clip.path, sample_rate=info.sample_rate)  # (S,)

    length = round(piece_seconds * info.sample_rate)

    num_pieces = max(1, round(waveform.size / length))

    pieces = []

    for number in range(num_pieces):
        path = folder / f"{clip.id}#{number}.flac"

        path.parent.mkdir(parents=True, exist_ok=True)

        end = None if number == num_pieces - 1 else (number + 1) * length

        with atomic_file(path) as temporary:
            soundfile.write(temporary, waveform[number * length : end], info.sample_rate, format="FLAC")

        pieces.append(Clip(id=f"{clip.id}#{number}", path=path, domain=clip.domain, label=clip.label))

    return pieces


def _align(rows: Sequence[ManifestRow], path: Path, num_workers: int) -> Mapping[str, Sequence[Segment]]:
    if not rows:
        return {}

    if path.exists() and path.stat().st_mtime > path.with_name(f"{_ALIGNED}.tsv").stat().st_mtime:
        return read_alignment(path)

    alignment, unaligned = align_rows([row for row in rows if row.text], num_workers=num_workers)

    write_unaligned(path.with_suffix(".unaligned.tsv"), unaligned)

    write_alignment(path, alignment)

    return alignment


def write_pretraining_manifests(out: Path, corpora: Corpora, *, hold_out_events: bool) -> dict[str, list[ManifestRow]]:
    """Write ``out/DOMAIN/{train,valid}.tsv`` and return their rows by ``DOMAIN/SPLIT``.

    ``out/DOMAIN/all.tsv`` and ``out/all.tsv`` list both splits, for teachers that encode them in one go.
    """
    manifests: dict[str, list[ManifestRow]] = {
        f"{domain}/{split}": [] for domain in DOMAINS for split in ("train", "valid")
    }

    for name, rows in corpora.items():
        if name in EVENT_CORPORA and hold_out_events:
            continue

        for row in rows:
            split = pretrain_split(row, hold_out_test=name in _PROBED)

            if split != "test":
                manifests[f"{row.domain}/{split}"].append(row)

    lists = dict(manifests)

    for domain in DOMAINS:
        lists[f"{domain}/all"] = manifests[f"{domain}/train"] + manifests[f"{domain}/valid"]

    lists["all"] = [row for domain in DOMAINS for row in lists[f"{domain}/all"]]

    for name, rows in lists.items():
        path = out / f"{name}.tsv"

        path.parent.mkdir(exist_ok=True)

        write_manifest(path, rows)

    return manifests


def _print_summary(out: Path, corpora: Corpora, manifests: Corpora, tasks: Mapping[str, Sequence[Example]]) -> None:
    table = Table("", "files", "hours", "bad", "with text", show_edge=False)

    for name, rows in {**corpora, **manifests}.items():
        if name in manifests and f"{name.split('/')[0]}/train" == name:
            table.add_section()

        hours = sum(row.duration for row in rows) / 3600

        num_text = sum(bool(row.text) for row in rows)

        table.add_row(name, str(len(rows)), f"{hours:.3f}", _count_bad(out, name), str(num_text or ""))

    Console().print(table)

    for name, examples in tasks.items():
        splits = {split: sum(example.split == split for example in examples) for split in ("train", "valid", "test")}

        num_labels = len({example.label for example in examples} - {""})

        Console().print(
            f"probe/{name}.tsv: {len(examples)} examples {splits}" + (f", {num_labels} labels" if num_labels else ""),
            highlight=False,
            soft_wrap=True,
        )


def _count_bad(out: Path, corpus: str) -> str:
    path = bad_file_list(out / "corpora" / f"{corpus}.tsv")

    return str(len(path.read_text(encoding="utf-8").splitlines()) - 1) if path.exists() else ""


if __name__ == "__main__":
    run_command(main)

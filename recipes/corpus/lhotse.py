r"""Make a manifest, and a code store if the cuts have codebook indexes, from cuts of lhotse: a file or a Shar folder.

    python -m recipes.corpus.lhotse OUT cuts.jsonl.gz --domain speech \
        --codes codebook_indexes --teacher wavlm_large:21 --quantizer NAME
    python -m recipes.corpus.lhotse OUT SHAR_FOLDER --domain speech

OUT gets manifest.tsv and, with --codes, the store OUT/codes. A cut must be a whole recording in a file of its own, as a
corpus has them before it is cut or mixed; others are listed in OUT/failed.tsv and left out. Texts of several
supervisions are put one behind the other. Indexes may lie in HDF5 (``numpy_hdf5``, needs h5py) or in files
(``numpy_files``). Cuts do not say which teacher and quantizer made the indexes: name them, since stores of different
ones are never mixed.

In a Shar folder each cut is whole. Its audio stays where it is: the manifest's paths lead into recording.*.tar, and
indexes are read from FIELD.*.tar.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.progress import track

from recipes.corpus.console import STDERR, CorpusError, run_command
from recipes.corpus.cuts import Cut, CutSource
from recipes.corpus.scan import write_bad_files
from spear_plugin.data.codes import CodeStoreError, CodeStoreIdentity, CodeStoreWriter, StoredCodes
from spear_plugin.data.manifest import read_manifest, rows_digest, write_manifest
from spear_plugin.data.scan import BadFile

_ROWS_PER_SHARD: Final = 10_000


def main(arguments: Sequence[str]) -> None:
    """Write the manifest and the store."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    source = CutSource(options.cuts, options.domain, options.codes)
    failed: list[BadFile] = []
    cuts = source.read(failed.append)

    if (first := next(cuts, None)) is None:
        write_bad_files(options.out / "failed.tsv", failed)
        raise CorpusError(f"{options.cuts}: none of its {len(failed)} cuts can be used, see {options.out}/failed.tsv.")

    manifest = options.out / "manifest.tsv"
    write_manifest(manifest, (cut.row for cut in itertools.chain([first], cuts)))
    write_bad_files(options.out / "failed.tsv", failed)
    rows = read_manifest(manifest)

    if first.codes is not None:
        identity = CodeStoreIdentity(
            teacher=options.teacher,
            quantizer=options.quantizer,
            num_codebooks=first.codes.num_codebooks,
            codebook_size=options.codebook_size,
            frame_rate_hz=round(1.0 / first.codes.frame_shift, 6),
            manifest=rows_digest(rows),
        )
        _write_store(options.out / "codes", identity, source, len(rows))

    print(f"{manifest}: {len(rows)} recordings, {len(failed)} cuts left out")


def _write_store(folder: Path, identity: CodeStoreIdentity, source: CutSource, num_rows: int) -> None:
    """Write the codes of all cuts, which are read once more: no list of them is ever in memory."""
    num_shards = -(-num_rows // _ROWS_PER_SHARD)
    cuts = source.read(lambda _: None)

    try:
        writer = CodeStoreWriter(folder, identity, num_shards, rows_per_shard=_ROWS_PER_SHARD)

        for index in track(range(num_shards), "Writing codes", console=STDERR, transient=True):
            part = list(itertools.islice(cuts, _ROWS_PER_SHARD))

            if not writer.has_shard(index):
                writer.write_shard(index, [cut.row.id for cut in part], [_read_codes(cut, identity) for cut in part])

        writer.finish()
    except (CodeStoreError, ValueError) as ex:
        raise CorpusError(str(ex)) from ex


def _read_codes(cut: Cut, identity: CodeStoreIdentity) -> StoredCodes:
    assert cut.codes is not None
    rate = round(1.0 / cut.codes.frame_shift, 6)

    if (cut.codes.num_codebooks, rate) != (identity.num_codebooks, identity.frame_rate_hz):
        raise CorpusError(
            f"'{cut.row.id}': has {cut.codes.num_codebooks} codebooks at {rate:g} Hz, but the cuts before have "
            f"{identity.num_codebooks} at {identity.frame_rate_hz:g} Hz. Import them one by one."
        )

    codes = cut.codes.read()

    if codes.ndim != 2 or (codes.size and (codes.min() < 0 or codes.max() >= identity.codebook_size)):
        raise CorpusError(
            f"'{cut.row.id}': the codes must be (T, K) from 0 to {identity.codebook_size - 1}, but are {codes.shape} "
            "with others. Check `--codes` and `--codebook-size`."
        )

    stored: StoredCodes = codes.astype(identity.code_dtype)

    return stored


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.lhotse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the manifest and the store")
    parser.add_argument("cuts", metavar="CUTS", type=Path, help="cuts in .jsonl or .jsonl.gz, or a Shar folder")
    parser.add_argument("--domain", choices=("speech", "audio"), default="speech", help="(default: %(default)s)")
    parser.add_argument("--codes", metavar="FIELD", help="custom field with the codebook indexes")
    parser.add_argument("--teacher", help="name and layer of the teacher that made them, e.g. wavlm_large:21")
    parser.add_argument("--quantizer", help="name of the quantizer that made them")
    parser.add_argument("--codebook-size", type=int, default=256, help="(default: %(default)s)")
    options = parser.parse_args(arguments)

    if options.codes and not (options.teacher and options.quantizer):
        parser.error("--codes needs --teacher and --quantizer, which name where the codes come from")

    return options


if __name__ == "__main__":
    run_command(main)

"""Make a manifest, and a code store if the cuts have codebook indexes, from a cut manifest of lhotse.

    python -m recipes.corpus.lhotse OUT cuts.jsonl.gz --domain speech \
        --codes codebook_indexes --teacher wavlm_large:21 --quantizer NAME

OUT gets manifest.tsv and, with --codes, the store OUT/codes. A cut must be a whole recording in a file of its own, as a
corpus has them before it is cut or mixed; others are listed in OUT/failed.tsv and left out. Texts of several
supervisions are put one behind the other. Indexes may lie in HDF5 (``numpy_hdf5``, needs h5py) or in files
(``numpy_files``). Cuts do not say which teacher and quantizer made the indexes: name them, since stores of different
ones are never mixed.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rich.progress import track

from recipes.corpus.console import STDERR, CorpusError, run_command
from recipes.corpus.scan import write_bad_files
from spear_plugin.data.codes import CodeStoreError, CodeStoreIdentity, CodeStoreWriter, StoredCodes
from spear_plugin.data.manifest import Domain, ManifestRow, manifest_digest, write_manifest
from spear_plugin.data.scan import BadFile

_ROWS_PER_SHARD: Final = 10_000

_TOLERANCE: Final = 0.001
"""Seconds that a cut may be shorter than its recording."""


class _Cut(NamedTuple):
    row: ManifestRow
    codes: Mapping[str, Any] | None


class _UnusableError(ValueError):
    """A cut cannot be a row of a manifest."""


def main(arguments: Sequence[str]) -> None:
    """Write the manifest and the store."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    cuts, failed = [], []

    for line_number, entry in _read_lines(options.cuts):
        try:
            cuts.append(_convert(entry, options))
        except _UnusableError as ex:
            failed.append(BadFile(Path(str(entry.get("id", line_number))), str(ex)))
        except (KeyError, TypeError, IndexError, ValueError) as ex:
            raise CorpusError(f"{options.cuts}, line {line_number}: is not a cut of lhotse ({ex!r}).") from ex

    write_bad_files(options.out / "failed.tsv", failed)

    if not cuts:
        raise CorpusError(f"{options.cuts}: none of its {len(failed)} cuts can be used, see {options.out}/failed.tsv.")

    manifest = options.out / "manifest.tsv"
    write_manifest(manifest, [cut.row for cut in cuts])

    if options.codes:
        _write_store(options, manifest, cuts)

    print(f"{manifest}: {len(cuts)} recordings, {len(failed)} cuts left out")


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0

    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not isinstance(entry := json.loads(line), dict):
                    raise ValueError("no JSON object")

                yield number, entry
    except (ValueError, EOFError, gzip.BadGzipFile) as ex:
        raise CorpusError(f"{path}, behind line {number}: is cut off or no cuts in JSON lines ({ex}).") from ex


def _convert(entry: Mapping[str, Any], options: argparse.Namespace) -> _Cut:
    if entry.get("type", "MonoCut") not in ("MonoCut", "MultiCut") or "recording" not in entry:
        raise _UnusableError(f"is a {entry.get('type')} without a recording of its own. Save the mixture as audio.")

    recording, sources = entry["recording"], entry["recording"]["sources"]

    if entry["start"] > _TOLERANCE or recording["duration"] - entry["duration"] > _TOLERANCE:
        raise _UnusableError("is a piece of its recording. Save it as audio, e.g. with `save_audios` of lhotse.")

    if len(sources) != 1 or sources[0]["type"] != "file":
        raise _UnusableError("must have its audio in one file. Save it as audio, e.g. with `save_audios` of lhotse.")

    if recording.get("transforms"):
        raise _UnusableError("has transforms, such as a change of speed. Save it as audio, or take the cuts without.")

    codes = entry.get("custom", {}).get(options.codes) if options.codes else None

    if options.codes and codes is None:
        raise _UnusableError(f"has no `{options.codes}`.")

    return _Cut(_make_row(entry, recording, sources[0], options.domain), codes)


def _make_row(
    entry: Mapping[str, Any], recording: Mapping[str, Any], source: Mapping[str, Any], domain: Domain
) -> ManifestRow:
    supervisions = sorted(entry.get("supervisions", []), key=lambda supervision: float(supervision["start"]))

    return ManifestRow(
        id=entry["id"],
        path=Path(source["source"]).absolute(),
        num_samples=int(recording["num_samples"]),
        sample_rate=int(recording["sampling_rate"]),
        domain=domain,
        text=" ".join(" ".join(str(item.get("text") or "").split()) for item in supervisions).strip(),
        speaker=_common(supervisions, "speaker"),
        language=_common(supervisions, "language"),
    )


def _common(supervisions: Sequence[Mapping[str, Any]], key: str) -> str:
    values = {str(item.get(key) or "") for item in supervisions}

    return values.pop() if len(values) == 1 else ""


def _write_store(options: argparse.Namespace, manifest: Path, cuts: Sequence[_Cut]) -> None:
    shapes = {(_array(cut)["shape"][1], cut.codes["frame_shift"]) for cut in cuts if cut.codes is not None}

    if len(shapes) != 1:
        raise CorpusError(f"{options.cuts}: `{options.codes}` has several numbers of codebooks or rates: {shapes}.")

    ((num_codebooks, frame_shift),) = shapes
    identity = CodeStoreIdentity(
        teacher=options.teacher,
        quantizer=options.quantizer,
        num_codebooks=num_codebooks,
        codebook_size=options.codebook_size,
        frame_rate_hz=round(1.0 / frame_shift, 6),
        manifest=manifest_digest(manifest),
    )
    parts = [cuts[first : first + _ROWS_PER_SHARD] for first in range(0, len(cuts), _ROWS_PER_SHARD)]

    try:
        writer = CodeStoreWriter(options.out / "codes", identity, len(parts), rows_per_shard=_ROWS_PER_SHARD)

        for index, part in enumerate(track(parts, "Writing codes", console=STDERR, transient=True)):
            if not writer.has_shard(index):
                codes = [_read_codes(cut, identity) for cut in part]
                writer.write_shard(index, [cut.row.id for cut in part], codes)

        writer.finish()
    except (CodeStoreError, ValueError) as ex:
        raise CorpusError(str(ex)) from ex


def _array(cut: _Cut) -> Mapping[str, Any]:
    assert cut.codes is not None
    array: Mapping[str, Any] = cut.codes["array"]

    return array


def _read_codes(cut: _Cut, identity: CodeStoreIdentity) -> StoredCodes:
    array = _array(cut)
    path, key = Path(array["storage_path"]), array["storage_key"]

    try:
        if array["storage_type"] == "numpy_files":
            path = path / key
            codes = np.load(path, allow_pickle=False)
        elif array["storage_type"] == "numpy_hdf5":
            codes = _read_hdf5(path, key)
        else:
            raise CorpusError(
                f"{path}: `{array['storage_type']}` is not read, only numpy_files and numpy_hdf5. Copy the indexes "
                "with lhotse into one of these."
            )
    except (OSError, KeyError) as ex:
        raise CorpusError(f"{path}: the codes of '{cut.row.id}' cannot be read ({ex}). Restore the file.") from ex

    if codes.ndim != 2 or (codes.size and (codes.min() < 0 or codes.max() >= identity.codebook_size)):
        raise CorpusError(
            f"{path}: the codes of '{cut.row.id}' must be (T, K) from 0 to {identity.codebook_size - 1}, but are "
            f"{codes.shape} with others. Check `--codes` and `--codebook-size`."
        )

    stored: StoredCodes = codes.astype(identity.code_dtype)

    return stored


def _read_hdf5(path: Path, key: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        import h5py  # noqa: PLC0415 (optional)
    except ImportError:
        raise CorpusError(f"{path}: h5py is needed to read it. Install it: pip install h5py.") from None

    with h5py.File(path, "r") as file:
        return np.asarray(file[key])


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.corpus.lhotse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the manifest and the store")
    parser.add_argument("cuts", metavar="CUTS", type=Path, help="cuts in JSON lines, .jsonl or .jsonl.gz")
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

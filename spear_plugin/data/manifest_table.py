"""A manifest with millions of lines: columns of numbers in memory, the text in the file.

Opening checks every line, block by block; 33 bytes of a row stay in memory. A row is read from its line when it is
asked for. Manifests are replaced, never changed in place, and the open file is the one that was checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from spear_plugin.data.audio_shards import hash_shards
from spear_plugin.data.manifest_lines import DOMAINS, ManifestError, ManifestRow, fail, parse_header, parse_line
from spear_plugin.data.text_fields import (
    Bytes,
    Hashes,
    Places,
    fields_equal,
    hash_fields,
    join_fields,
    parse_counts,
    split_lines,
)

_BLOCK_SIZE: Final = 1 << 22

_NO_DOMAIN: Final = 255


class _Block(NamedTuple):
    """What is kept of some lines."""

    ends: Places
    num_samples: NDArray[np.int64]
    sample_rates: NDArray[np.int64]
    domains: NDArray[np.uint8]
    id_hashes: Hashes
    shard_hashes: Hashes


@final
class ManifestTable(Sequence[ManifestRow]):
    """The rows of a manifest in the order of the file. Several threads may use it.

    Letters: R rows.
    """

    def __init__(self, path: Path) -> None:
        """Open and check a manifest; errors are those of :func:`spear_plugin.data.manifest.read_manifest`."""
        self.path = path
        self._folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 (lexical, as in the writer: links stay)

        try:
            self._file = pa.OSFile(str(path))
            self._header = _read_header(self._file)
            self._columns = parse_header(path, self._header.decode())
            # Not as a list of blocks: joining it would hold all twice, and with other things between, the memory
            # of the blocks does not go back.
            columns = [np.concatenate(parts) for parts in zip(*self._parse(), strict=True)]
        except OSError as ex:
            raise ManifestError(f"{path}: the manifest cannot be read: {_reason(ex)}. Check the path.") from ex
        except UnicodeDecodeError as ex:
            raise ManifestError(f"{path}: a manifest must be UTF-8 text: {ex}. Convert the file.") from ex

        self._ends: Places = columns[0]
        """(R + 1,), where each line ends in the file; the header first."""

        self.num_samples: NDArray[np.int64] = columns[1]
        """(R,)"""

        self.sample_rates: NDArray[np.int64] = columns[2]
        """(R,), in Hz."""

        self._domains: NDArray[np.uint8] = columns[3]

        self.id_hashes: Hashes = columns[4]
        """(R,), see :func:`spear_plugin.data.text_fields.hash_fields`."""

        self.shards: NDArray[np.uint32] | None = _number(columns[5])
        """(R,), a number for each archive that audio is in, the same for all other files; None without archives."""

        self._check_unique()

    @override
    def __len__(self) -> int:
        return self.num_samples.size

    @overload
    def __getitem__(self, index: int) -> ManifestRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[ManifestRow]: ...

    @override
    def __getitem__(self, index: int | slice) -> ManifestRow | list[ManifestRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]

        place = range(len(self))[index]
        first, last = int(self._ends[place]), int(self._ends[place + 1])

        return self._parse_row(place, bytes(self._file.read_at(last - first, first)))

    @override
    def __iter__(self) -> Iterator[ManifestRow]:
        place = 0

        for block in self._blocks():
            for line in block[:-1].split(b"\n"):
                yield self._parse_row(place, line)
                place += 1

    def __reduce__(self) -> tuple[Any, ...]:
        return (ManifestTable, (self.path,))

    def in_domains(self, domains: Sequence[str]) -> NDArray[np.bool_]:
        """Return (R,), which rows are of one of some domains."""
        return np.isin(self._domains, [DOMAINS.index(domain) for domain in DOMAINS if domain in domains])

    def digest(self) -> str:
        """Return :func:`spear_plugin.data.manifest.rows_digest` of the rows."""
        digest, chosen = hashlib.sha256(), [self._columns.index(name) for name in ("id", "num_samples", "sample_rate")]

        for block in self._blocks():
            data = np.frombuffer(block, dtype=np.uint8)
            starts, ends = self._split(data, block)
            _skip_zeros(data, starts, ends, chosen[1:])
            digest.update(join_fields(data, starts[:, chosen], ends[:, chosen]).tobytes())

        return digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        """Yield the lines below the header, many at a time, each with a line feed."""
        place, rest = len(self._header), b""

        while read := bytes(self._file.read_at(_BLOCK_SIZE, place)):
            place += len(read)
            lines, line_feed, rest = (rest + read).rpartition(b"\n")

            if line_feed:
                yield lines + line_feed

        if rest:
            yield rest + b"\n"

    def _parse(self) -> Iterator[_Block]:
        place, num_rows = len(self._header), 0
        numbers = np.empty(0, dtype=np.int64)
        yield _Block(np.array([place]), numbers, numbers, numbers.astype(np.uint8), *[numbers.astype("u8")] * 2)

        for block in self._blocks():
            block.decode()  # all of it must be UTF-8

            if (parsed := self._parse_block(block, place)) is None:
                self._parse_slowly(block, num_rows)
                raise AssertionError(f"{self.path}: row by row, no mistake can be found.")

            place, num_rows = place + len(block), num_rows + parsed.num_samples.size
            yield parsed

    def _parse_block(self, block: bytes, place: int) -> _Block | None:
        """Return None if something is wrong with a line."""
        data = np.frombuffer(block, dtype=np.uint8)

        if (fields := split_lines(data, len(self._columns))) is None:
            return None

        starts, ends = ({name: part[:, index] for index, name in enumerate(self._columns)} for part in fields)
        num_samples, sample_rates = (
            parse_counts(data, starts[name], ends[name]) for name in ("num_samples", "sample_rate")
        )
        domains = np.full(len(fields[0]), _NO_DOMAIN, dtype=np.uint8)

        for number, domain in enumerate(DOMAINS):
            domains[fields_equal(data, starts["domain"], ends["domain"], domain.encode())] = number

        if num_samples is None or sample_rates is None or _NO_DOMAIN in domains:
            return None

        if any((starts[name] == ends[name]).any() for name in ("id", "path")):
            return None

        return _Block(
            ends=np.append(fields[0][1:, 0], data.size) + place,
            num_samples=num_samples,
            sample_rates=sample_rates,
            domains=domains,
            id_hashes=hash_fields(data, starts["id"], ends["id"]),
            shard_hashes=hash_shards(data, block, starts["path"], ends["path"]),
        )

    def _parse_slowly(self, block: bytes, first: int) -> None:
        """Find the mistake in a block."""
        for place, line in enumerate(block[:-1].split(b"\n"), start=first):
            self._parse_row(place, line)

    def _parse_row(self, place: int, line: bytes) -> ManifestRow:
        return parse_line(self.path, self._folder, place + 2, self._columns, line.decode())

    def _split(self, data: Bytes, block: bytes) -> tuple[Places, Places]:
        if (fields := split_lines(data, len(self._columns))) is None:
            raise ManifestError(f"{self.path}: was changed while it was read ({len(block)} bytes). Start again.")

        return fields

    def _check_unique(self) -> None:
        ordered = np.sort(self.id_hashes)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        ids: set[str] = set()

        for place in np.nonzero(np.isin(self.id_hashes, repeated))[0] if repeated.size else ():
            if (id_ := self[int(place)].id) in ids:
                fail(self.path, int(place) + 2, "id", f"ids must be unique, but '{id_}' occurs twice")

            ids.add(id_)


def _number(hashes: Hashes) -> NDArray[np.uint32] | None:
    if not hashes.any():
        return None

    return np.unique(hashes, return_inverse=True)[1].astype(np.uint32)


def _read_header(file: pa.NativeFile) -> bytes:
    header = b""

    while read := bytes(file.read_at(_BLOCK_SIZE, len(header))):
        header += read

        if (end := header.find(b"\n")) >= 0:
            return header[: end + 1]

    return header


def _skip_zeros(data: Bytes, starts: Places, ends: Places, columns: Sequence[int]) -> None:
    """Move the beginnings of numbers behind leading zeros, which are not part of a digest."""
    for column in columns:
        while (leading := (data[starts[:, column]] == ord("0")) & (ends[:, column] - starts[:, column] > 1)).any():
            starts[:, column] += leading


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)

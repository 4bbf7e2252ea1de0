"""Archives whose members lie in one piece and as they are, so that any of them is read by its place: tar, zip, Parquet.

A format is known by the suffix of the file. Scanning finds the members, writing the same members gives the same bytes.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, final

import pyarrow as pa
import pyarrow.parquet as pq

_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)

_ZIP_HEADER: Final = struct.Struct("<4s22xHH")
"""Of a member: signature, lengths of the name and of the extra field; both stand behind it, then the content."""

_AUDIO_COLUMN: Final = "audio"

_PARQUET_SCHEMA: Final = pa.schema([(_AUDIO_COLUMN, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])

_ROW_GROUP_SIZE: Final = 1 << 26
"""Bytes of audio; readers of the whole column have one in memory."""

_NUM_SOUGHT_BYTES: Final = 32


class ArchiveError(ValueError):
    """Raised when an archive cannot be used; the message says what it is, without its name."""


@final
class Member(NamedTuple):
    """A file in an archive."""

    name: str

    place: int
    """Of its first byte in the archive."""

    size: int

    checksum: int
    """CRC-32 of its bytes."""

    @property
    def path(self) -> str:
        """The name as part of a path that leads through the archive."""
        return os.path.normpath(self.name).lstrip("/")


Content: TypeAlias = Sequence[tuple[str, bytes]]
"""Names and bytes of members."""


@final
class ArchiveFormat(NamedTuple):
    """How archives of one kind are read and written."""

    scan: Callable[[Path], Iterator[Member]]

    write: Callable[[Path, Content], None]


def scan_archive(path: Path) -> Iterator[Member]:
    """Yield the members of an archive.

    :raises ArchiveError: If it is damaged, or its members are compressed or encrypted.
    """
    return ARCHIVE_FORMATS[path.suffix].scan(path)


def _scan_tar(path: Path) -> Iterator[Member]:
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            for entry in archive:
                if entry.isfile():
                    file.seek(entry.offset_data)

                    if len(content := file.read(entry.size)) < entry.size:
                        raise ArchiveError("the shard is cut off")

                    yield Member(entry.name, entry.offset_data, entry.size, zlib.crc32(content))
    except tarfile.TarError as ex:
        raise ArchiveError(f"is no uncompressed tar archive, or damaged ({ex})") from ex


def _write_tar(path: Path, content: Content) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in content:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _scan_zip(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue

                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise ArchiveError(f"'{entry.filename}' is compressed or encrypted, where members must be stored")

                file.seek(entry.header_offset)
                _, name_size, extra_size = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
                place = entry.header_offset + _ZIP_HEADER.size + name_size + extra_size
                yield Member(entry.filename, place, entry.file_size, entry.CRC)
    except (zipfile.BadZipFile, struct.error) as ex:
        raise ArchiveError(f"is no zip archive, cut off or damaged ({ex})") from ex


def _write_zip(path: Path, content: Content) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data)


def _scan_parquet(path: Path) -> Iterator[Member]:
    """Yield what is in the column ``audio`` of the field's usual type, a struct of ``bytes`` and ``path``."""
    num_rows, names = 0, set()

    try:
        with pq.ParquetFile(path) as table, path.open("rb") as file:
            for group in range(table.num_row_groups):
                chunk, start = _audio_chunk(table.metadata.row_group(group))
                file.seek(start)
                data = file.read(chunk.total_compressed_size)
                audio = table.read_row_group(group, columns=[_AUDIO_COLUMN]).column(0).combine_chunks()

                for member in _find_values(data, start, audio, num_rows):
                    if member.name in names:
                        raise ArchiveError(f"several of its rows have the path '{member.name}'")

                    names.add(member.name)
                    yield member

                num_rows += len(audio)
    except (pa.ArrowException, OSError, KeyError) as ex:
        reason = " ".join(str(ex).split())
        raise ArchiveError(f"is no Parquet file with audio, cut off or damaged ({reason})") from ex


def _audio_chunk(group: pq.RowGroupMetaData) -> tuple[pq.ColumnChunkMetaData, int]:
    """Return the bytes of the audio of a row group, and where they begin in the file."""
    chunks = (group.column(index) for index in range(group.num_columns))
    chunk = next((chunk for chunk in chunks if chunk.path_in_schema == f"{_AUDIO_COLUMN}.bytes"), None)

    if chunk is None:
        raise ArchiveError(f"has no column `{_AUDIO_COLUMN}` with the fields `bytes` and `path`")

    if chunk.compression != "UNCOMPRESSED":
        raise ArchiveError(
            f"its audio is compressed ({chunk.compression}), which takes the place of members; write it with "
            "`compression='none'`"
        )

    return chunk, chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset


def _find_values(data: bytes, start: int, audio: Any, num_rows: int) -> Iterator[Member]:
    """Find values in the pages that Arrow read them from.

    A value stands there as it is, behind its length, and as a rule behind the value of the row before.
    """
    position, names = 0, audio.field("path").to_pylist()

    for row, (name, value) in enumerate(zip(names, audio.field("bytes"), strict=True)):
        if (buffer := value.as_buffer()) is None:  # audio in a file elsewhere
            continue

        content = buffer.to_pybytes()
        found = _find_value(data, content, position)
        position = (_find_value(data, content, 0) if found < 0 else found) + len(content)

        if position < len(content):
            raise ArchiveError(f"the audio of row {num_rows + row} is not in one piece; write the file anew")

        name = f"{num_rows + row:09d}" if name is None else name
        yield Member(name, start + position - len(content), len(content), zlib.crc32(content))


def _find_value(data: bytes, content: bytes, first: int) -> int:
    """Return the place of the content in the data, or -1."""
    sought = len(content).to_bytes(4, "little") + content[:_NUM_SOUGHT_BYTES]

    while (place := data.find(sought, first)) >= 0:
        if data.startswith(content, place + 4):
            return place + 4

        first = place + 1

    return -1


def _write_parquet(path: Path, content: Content) -> None:
    with pq.ParquetWriter(
        str(path), _PARQUET_SCHEMA, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        group: list[dict[str, object]] = []
        size = 0

        for name, data in content:
            if group and size + len(data) > _ROW_GROUP_SIZE:
                writer.write_table(_make_table(group))
                group, size = [], 0

            group.append({"bytes": data, "path": name})
            size += len(data)

        writer.write_table(_make_table(group))


def _make_table(group: Sequence[Mapping[str, object]]) -> pa.Table:
    return pa.table([pa.array(group, _PARQUET_SCHEMA[0].type)], schema=_PARQUET_SCHEMA)


ARCHIVE_FORMATS: Final[Mapping[str, ArchiveFormat]] = {
    ".tar": ArchiveFormat(_scan_tar, _write_tar),
    ".zip": ArchiveFormat(_scan_zip, _write_zip),
    ".parquet": ArchiveFormat(_scan_parquet, _write_parquet),
}
"""By suffix of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from spear_plugin.data.manifest import (
    ManifestError,
    ManifestRow,
    manifest_digest,
    read_manifest,
    rows_digest,
    write_manifest,
)
from spear_plugin.data.text_fields import hash_text

HEADER = "id\tpath\tnum_samples\tsample_rate\tdomain\ttext\n"


def make_rows(folder: Path) -> list[ManifestRow]:
    return [
        ManifestRow(
            id="a", path=folder / "a.wav", num_samples=8000, sample_rate=16_000, domain="speech", text="so, hé"
        ),
        ManifestRow(id="b", path=Path("/elsewhere/b.wav"), num_samples=3, sample_rate=44_100, domain="audio"),
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    write_manifest(tmp_path / "m.tsv", rows)

    assert list(read_manifest(tmp_path / "m.tsv")) == rows
    assert rows[0].duration == 0.5


def test_a_corpus_can_be_moved_together_with_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "old" / "lists").mkdir(parents=True)
    write_manifest(tmp_path / "old" / "lists" / "m.tsv", make_rows(tmp_path / "old" / "audio"))
    (tmp_path / "old").rename(tmp_path / "new")

    paths = [row.path for row in read_manifest(tmp_path / "new" / "lists" / "m.tsv")]

    assert paths == [tmp_path / "new" / "audio" / "a.wav", Path("/elsewhere/b.wav")]


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("domain\tid\tsample_rate\tpath\tnum_samples\naudio\tx\t8000\tx.wav\t5\n")

    (row,) = read_manifest(path)

    assert row == ManifestRow(id="x", path=tmp_path / "x.wav", num_samples=5, sample_rate=8000, domain="audio")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tpath\tsample_rate\tdomain\n", r"line 1, column 'num_samples': the header must name the column"),
        (HEADER.replace("text", "txt"), r"line 1, column 'txt': the column is unknown"),
        (HEADER.replace("text", "id"), r"line 1, column 'id': the header names the column twice"),
        (
            HEADER + "a\ta.wav\t5\t8000\tspeech\t\nb\tb.wav\t5k\t8000\tspeech\t\n",
            r"line 3, column 'num_samples': .* '5k'",
        ),
        (HEADER + "a\ta.wav\t5\t-8000\tspeech\t\n", r"line 2, column 'sample_rate': must be a positive integer"),
        (HEADER + "a\ta.wav\t0\t8000\tspeech\t\n", r"line 2, column 'num_samples': must be a positive integer"),
        (HEADER + "a\ta.wav\t5\t8000\tmusic\t\n", r"line 2, column 'domain': must be one of speech, audio, .* 'music'"),
        (HEADER + "\ta.wav\t5\t8000\tspeech\t\n", r"line 2, column 'id': must not be empty"),
        (
            HEADER + "a\ta.wav\t5\t8000\tspeech\t\n" * 2,
            r"line 3, column 'id': ids must be unique, but 'a' occurs twice",
        ),
        (HEADER + "a\ta.wav\t5\t8000\tspeech\tone\ttwo\n", r"line 2: must have 6 fields .* has 7"),
        (HEADER + "a\ta.wav\n", r"line 2: must have 6 fields .* has 2"),
    ],
)
def test_an_invalid_manifest_is_refused_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.tsv"
    path.write_text(text)

    with pytest.raises(ManifestError, match=message) as info:
        read_manifest(path)

    assert str(info.value).startswith(f"{path}, line")
    assert "\n" not in str(info.value)


def test_a_missing_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none.tsv: the manifest cannot be read: No such file"):
        read_manifest(tmp_path / "none.tsv")

    (tmp_path / "m.tsv").write_bytes(HEADER.encode() + b"\xff\xfe\n")

    with pytest.raises(ManifestError, match="must be UTF-8"):
        read_manifest(tmp_path / "m.tsv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, r"line 4, column 'id': ids must be unique"),
        ({"id": "c", "text": "tab\there"}, r"line 4, column 'text': must not hold tabs"),
        ({"id": "c", "label": "line\nbreak"}, r"line 4, column 'label': must not hold tabs or line breaks"),
    ],
)
def test_a_row_that_could_not_be_read_back_is_not_written(tmp_path: Path, row: dict[str, str], message: str) -> None:
    path = tmp_path / "m.tsv"
    write_manifest(path, make_rows(tmp_path)[:1])
    before = path.read_text()
    bad = ManifestRow(path=tmp_path / "c.wav", num_samples=1, sample_rate=1, domain="audio", **row)

    with pytest.raises(ManifestError, match=message):
        write_manifest(path, [*make_rows(tmp_path), bad])

    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tsv"]


def test_the_digest_follows_ids_and_lengths_only(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        row = {
            "id": "a",
            "path": tmp_path / "a",
            "num_samples": 5,
            "sample_rate": 8000,
            "domain": "speech",
            "text": "x",
        }
        write_manifest(tmp_path / "m.tsv", [ManifestRow(**{**row, **changes})])  # type: ignore[arg-type]

        return manifest_digest(tmp_path / "m.tsv")

    assert digest() == digest(text="y", path=tmp_path / "b")
    assert len({digest(), digest(id="b"), digest(num_samples=6), digest(sample_rate=16_000)}) == 4


def test_a_table_gives_the_rows_that_a_reader_of_lines_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ManifestRow(
            id=f"é{index}" * (index % 9 + 1),
            path=tmp_path / f"{index}.wav",
            num_samples=10 ** (index % 11) + index,
            sample_rate=8000 + index,
            domain="audio" if index % 3 else "speech",
            text="ü" * (index % 7),
        )
        for index in range(200)
    ]
    write_manifest(tmp_path / "m.tsv", rows)
    monkeypatch.setattr("spear_plugin.data.manifest_table._BLOCK_SIZE", 997)

    table = read_manifest(tmp_path / "m.tsv")

    assert list(table) == rows
    assert [table[index] for index in range(-1, -201, -1)] == rows[::-1]
    assert table[3:9:2] == rows[3:9:2]
    assert table.num_samples.tolist() == [row.num_samples for row in rows]
    assert table.in_domains(["audio"]).tolist() == [row.domain == "audio" for row in rows]
    assert table.digest() == rows_digest(rows)
    assert table.id_hashes.tolist() == [int(hash_text(row.id)) for row in rows]
    assert len(set(table.id_hashes.tolist())) == 200

    with pytest.raises(IndexError):
        table[200]


def test_windows_line_ends_leading_zeros_and_a_missing_line_end_change_nothing(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.tsv", tmp_path / "odd.tsv"
    plain.write_text("id\tpath\tdomain\tsample_rate\tnum_samples\na\ta.wav\tspeech\t8000\t70\n")
    odd.write_bytes(plain.read_bytes().replace(b"\n", b"\r\n").replace(b"\t70", b"\t0070").removesuffix(b"\r\n"))

    assert list(read_manifest(odd)) == list(read_manifest(plain))
    assert manifest_digest(odd) == manifest_digest(plain) == rows_digest(list(read_manifest(plain)))


def test_mistakes_are_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_plugin.data.manifest_table._BLOCK_SIZE", 100)
    lines = [f"{index}\t{index}.wav\t5\t8000\tspeech\t\n" for index in range(100)]
    path = tmp_path / "m.tsv"
    path.write_text(HEADER + "".join([*lines, lines[7]]))

    with pytest.raises(ManifestError, match="line 102, column 'id': ids must be unique, but '7' occurs twice"):
        read_manifest(path)

    path.write_text(HEADER + "".join([*lines[:90], lines[0].replace("8000", "1" * 19)]))

    with pytest.raises(ManifestError, match="line 92, column 'sample_rate': must be a positive integer"):
        read_manifest(path)

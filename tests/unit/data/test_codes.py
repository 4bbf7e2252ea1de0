from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spear_plugin.data.codes import CodeStore, CodeStoreError, CodeStoreIdentity, CodeStoreWriter

IDENTITY = CodeStoreIdentity(
    teacher="t:1", quantizer="q", num_codebooks=4, codebook_size=200, frame_rate_hz=50.0, manifest="m"
)

CODES = {f"id{index}": np.random.default_rng(index).integers(0, 200, (index, 4), dtype=np.uint8) for index in range(7)}

# Of the two JSON files of `make_store`, by the code that knew bytes only.
DIGEST_OF_BYTE_STORE = "338739dbeb11d6d84eaf9c94d868e4bdf58aa559cfd001d8d7f5fc907def2bc8"

SHARDS = [["id0", "id1", "id2"], ["id3", "id4", "id5"], ["id6"]]


def write_shard(writer: CodeStoreWriter, index: int) -> None:
    writer.write_shard(index, SHARDS[index], [CODES[id_] for id_ in SHARDS[index]])


def make_store(folder: Path, order: tuple[int, ...] = (0, 1, 2)) -> Path:
    writer = CodeStoreWriter(folder, IDENTITY, len(SHARDS))

    for index in order:
        write_shard(writer, index)

    writer.finish()

    return folder


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace(path: Path, content: bytes) -> None:
    """Write a new file: writing into the old one would change the memory that is mapped from it."""
    path.unlink()
    path.write_bytes(content)


def test_codes_are_found_by_id(tmp_path: Path) -> None:
    store = CodeStore(make_store(tmp_path / "s"))

    assert store.identity == IDENTITY
    assert store.ids() == list(CODES)
    assert len(store) == 7
    assert "id3" in store
    assert "id7" not in store

    for id_, codes in CODES.items():
        np.testing.assert_array_equal(store[id_], codes)
        assert store[id_].dtype == np.uint8


def test_ids_with_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spear_plugin.data.shards.hash", len, raising=False)
    store = CodeStore(make_store(tmp_path / "s"))

    for id_, codes in CODES.items():
        np.testing.assert_array_equal(store[id_], codes)

    assert "xxx" not in store


def test_the_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    assert read_bytes(make_store(tmp_path / "a")) == read_bytes(make_store(tmp_path / "b", order=(2, 0, 1)))


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = CodeStoreWriter(folder, IDENTITY, 3)
    write_shard(first, 0)
    write_shard(first, 1)
    replace(folder / "shard-00001.arrow", (folder / "shard-00001.arrow").read_bytes()[:100])
    (folder / ".shard-00002.arrow.0123.tmp").write_bytes(b"half")

    second = CodeStoreWriter(folder, IDENTITY, 3)
    assert [second.has_shard(index) for index in range(3)] == [True, False, False]
    write_shard(second, 1)
    write_shard(second, 2)
    second.finish()

    assert read_bytes(folder) == read_bytes(make_store(tmp_path / "in_one_go"))


def test_an_unfinished_store_says_how_to_go_on(tmp_path: Path) -> None:
    writer = CodeStoreWriter(tmp_path, IDENTITY, 3)
    write_shard(writer, 0)

    with pytest.raises(CodeStoreError, match=r"shard-00001.arrow: the shard is missing"):
        writer.finish()

    with pytest.raises(CodeStoreError, match=r"unfinished: start the same encode command again"):
        CodeStore(tmp_path)


def test_a_store_of_another_encoding_is_not_continued(tmp_path: Path) -> None:
    CodeStoreWriter(tmp_path, IDENTITY, 3, rows_per_shard=3)

    with pytest.raises(CodeStoreError, match=r"another encoding \(teacher: t:1, not u:1, num_shards: 3, not 4\)"):
        CodeStoreWriter(tmp_path, dataclasses.replace(IDENTITY, teacher="u:1"), 4, rows_per_shard=3)

    with pytest.raises(CodeStoreError, match=r"rows_per_shard: 3, not 2"):
        CodeStoreWriter(tmp_path, IDENTITY, 3, rows_per_shard=2)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3, 5), dtype=np.uint8), r"`codes` of 'x' must be uint8 of shape \(T, 4\), .* \(3, 5\)"),
        (np.zeros((3, 4), dtype=np.int64), r"must be uint8 .* is int64"),
        (np.full((3, 4), 200, dtype=np.uint8), r"must be below the codebook size 200, but the largest is 200"),
    ],
)
def test_codes_that_do_not_fit_the_identity_are_not_written(
    tmp_path: Path, codes: NDArray[np.uint8], message: str
) -> None:
    writer = CodeStoreWriter(tmp_path, IDENTITY, 1)

    with pytest.raises(ValueError, match=message):
        writer.write_shard(0, ["x"], [codes])

    assert not writer.has_shard(0)


def test_codes_above_255_take_two_bytes(tmp_path: Path) -> None:
    identity = dataclasses.replace(IDENTITY, codebook_size=4096, num_codebooks=2)
    codes = [np.arange(6, dtype=np.uint16).reshape(3, 2) * 700, np.full((1, 2), 4095, dtype=np.uint16)]
    writer = CodeStoreWriter(tmp_path, identity, 1)
    writer.write_shard(0, ["x", "y"], codes)
    writer.finish()
    store = CodeStore(tmp_path)

    assert identity.code_dtype == np.dtype("<u2")
    for id_, expected in zip(["x", "y"], codes, strict=True):
        np.testing.assert_array_equal(store[id_], expected)
    # The low byte first, on any machine.
    assert codes[0].astype("<u2").tobytes() in (tmp_path / "shard-00000.arrow").read_bytes()
    with pytest.raises(ValueError, match=r"must be uint16 of shape .* but is uint8"):
        writer.write_shard(0, ["x"], [np.zeros((3, 2), dtype=np.uint8)])


def test_codes_up_to_255_are_bytes_and_take_the_place_they_always_took(tmp_path: Path) -> None:
    content = read_bytes(make_store(tmp_path))

    # The checksums of the shards are in complete.json.
    assert hashlib.sha256(content["complete.json"] + content["store.json"]).hexdigest() == DIGEST_OF_BYTE_STORE


def test_codebooks_too_large_for_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`codebook_size` must be at most 32768 in a store, but is 32769"):
        CodeStoreWriter(tmp_path, dataclasses.replace(IDENTITY, codebook_size=32769), 1)


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    writer = CodeStoreWriter(tmp_path, IDENTITY, 1)
    writer.write_shard(0, [], [])
    writer.finish()

    assert CodeStore(tmp_path).ids() == []


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    writer = CodeStoreWriter(tmp_path, IDENTITY, 2)
    write_shard(writer, 0)
    writer.write_shard(1, ["id2"], [CODES["id2"]])

    with pytest.raises(CodeStoreError, match="the id 'id2' occurs twice"):
        writer.finish()


def test_an_unknown_id_names_the_store(tmp_path: Path) -> None:
    with pytest.raises(CodeStoreError, match=rf"{tmp_path}: has no codes for 'x'"):
        CodeStore(make_store(tmp_path))["x"]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    replace(path, path.read_bytes()[:-50])


def swap_identity(path: Path) -> None:
    replace(path, path.read_bytes().replace(b'"q"', b'"p"'))


def write_other_codes(path: Path) -> None:
    other = path.parent.parent / "other"
    writer = CodeStoreWriter(other, IDENTITY, 1)
    writer.write_shard(0, SHARDS[1], [codes[::-1] for codes in map(CODES.__getitem__, SHARDS[1])])
    replace(path, (other / "shard-00000.arrow").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "the shard is missing"),
        (truncate, "the shard is cut off or damaged"),
        (swap_identity, "is of another store (quantizer: p, not q)"),
        (write_other_codes, "is not the shard that the store was finished with"),
    ],
)
def test_a_bad_shard_is_named_when_the_store_is_opened(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = make_store(tmp_path / "s") / "shard-00001.arrow"
    damage(path)

    with pytest.raises(CodeStoreError, match=re.escape(f"{path}: {message}")) as info:
        CodeStore(tmp_path / "s")

    assert "ncode again" in str(info.value)


def test_a_flipped_code_is_found_when_the_shard_is_first_touched(tmp_path: Path) -> None:
    path = make_store(tmp_path) / "shard-00001.arrow"
    content = path.read_bytes()
    replace(path, content.replace(CODES["id4"].tobytes(), bytes(reversed(CODES["id4"].tobytes()))))
    store = CodeStore(tmp_path)

    np.testing.assert_array_equal(store["id1"], CODES["id1"])

    with pytest.raises(CodeStoreError, match=r"shard-00001.arrow: the shard is damaged: its checksum does not match"):
        store["id3"]

    with pytest.raises(CodeStoreError, match=r"shard-00001.arrow"):
        store.verify()


def test_no_flipped_byte_ever_gives_wrong_codes(tmp_path: Path) -> None:
    path = make_store(tmp_path) / "shard-00001.arrow"
    content = path.read_bytes()
    num_errors = 0

    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 0x80
        replace(path, bytes(damaged))

        try:
            store = CodeStore(tmp_path)
            read = [store[id_] for id_ in SHARDS[1]]
        except CodeStoreError:
            num_errors += 1
        else:
            assert all(np.array_equal(codes, CODES[id_]) for codes, id_ in zip(read, SHARDS[1], strict=True))

    assert num_errors > 150


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    header = make_store(tmp_path) / "store.json"
    header.write_text(json.dumps({"num_shards": 3}))

    with pytest.raises(CodeStoreError, match="JSON files are damaged"):
        CodeStore(tmp_path)

    header.write_text("[]")

    with pytest.raises(CodeStoreError, match=r"store.json: must hold a JSON object"):
        CodeStore(tmp_path)

    header.write_text("{")

    with pytest.raises(CodeStoreError, match=r"store.json: cannot be read"):
        CodeStore(tmp_path)


def test_threads_may_share_a_store_and_processes_may_copy_it(tmp_path: Path) -> None:
    store = CodeStore(make_store(tmp_path))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(store.__getitem__, list(CODES) * 20))

    assert all(
        np.array_equal(codes, expected) for codes, expected in zip(found, list(CODES.values()) * 20, strict=True)
    )
    assert pickle.loads(pickle.dumps(store)).ids() == store.ids()

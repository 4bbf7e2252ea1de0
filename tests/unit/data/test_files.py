from __future__ import annotations

from pathlib import Path

import pytest

from spear_plugin.data.files import abbreviate, atomic_file


def test_a_reader_of_the_old_file_never_sees_the_new_bytes(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_text("old")
    link.hardlink_to(path)

    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"

    assert (path.read_text(), link.read_text()) == ("new", "old")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_long_lists_are_abbreviated() -> None:
    assert abbreviate(["a", "b"]) == "'a', 'b'"
    assert abbreviate(list("abcde")) == "'a', 'b', 'c' and 2 more"

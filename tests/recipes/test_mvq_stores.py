from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.mvq import stats, verify
from recipes.mvq.console import run_command
from spear_plugin.data.codes import CodeStore, CodeStoreIdentity, CodeStoreWriter
from spear_plugin.data.shards import Shard, write_shard

FRAMES = {"a": 50, "b": 100, "c": 150, "d": 25}
IDS = [["a", "b"], ["c", "d"]]


def make_store(folder: Path, *, codebook_size: int = 300) -> Path:
    """Write a store of 1, 2, 3 and 0.5 s: its first codebook has all codes alike, the second one of two entries."""
    identity = CodeStoreIdentity(
        teacher="t:1", quantizer="q", num_codebooks=2, codebook_size=codebook_size, frame_rate_hz=50.0, manifest="m"
    )
    writer = CodeStoreWriter(folder, identity, 2)
    codes = {
        id_: np.stack([np.full(n, 7), np.arange(n) % 2 * (codebook_size - 1)], axis=1).astype(identity.code_dtype)
        for id_, n in FRAMES.items()
    }
    for index, ids in enumerate(IDS):
        writer.write_shard(index, ids, [codes[id_] for id_ in ids])
    writer.finish()
    return folder


def write_manifest(folder: Path, durations: dict[str, float]) -> Path:
    path = folder / "speech.tsv"
    lines = [f"{id_}\t{id_}.wav\t{int(seconds * 8000)}\t8000\tspeech" for id_, seconds in durations.items()]
    path.write_text("\n".join(["id\tpath\tnum_samples\tsample_rate\tdomain", *lines]) + "\n")
    return path


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x07\x00\x2b\x01")] ^= 0x80  # 7, 299: the second frame of a row
    path.unlink()
    path.write_bytes(content)


def read_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_a_whole_store_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    manifest = write_manifest(tmp_path, {"a": 1.0, "b": 2.1, "c": 3.0, "d": 0.5})  # five frames apart are allowed
    assert verify.main([str(store), "--manifest", str(manifest), "--json"]) == 0
    found = read_json(capsys)
    assert (found["sound"], found["num_shards"], found["num_rows"], found["num_frames"]) == (True, 2, 4, 325)
    assert verify.main([str(store)]) == 0
    assert "325" in capsys.readouterr().out


def test_every_fault_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    (store / "failed.tsv").write_text("id\tproblem\nbroken\tempty file\n")
    manifest = write_manifest(tmp_path, {"a": 1.0, "b": 2.2, "c": 3.0, "broken": 1.0, "lost": 1.0})
    assert verify.main([str(store), "--manifest", str(manifest), "--json"]) == 1
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["missing_ids"] == ["lost"]
    assert found["left_out_ids"] == ["broken"]
    assert found["surplus_ids"] == ["d"]
    assert found["wrong_lengths"] == ["b: has 100 frames, but lasts 110"]
    assert len(output.err.splitlines()) == 1
    assert "not sound: 1 ids missing, 1 ids not in the manifest, 1 wrong lengths. Encode again." in output.err
    assert verify.main([str(store), "--manifest", str(manifest)]) == 1
    table = capsys.readouterr().out
    assert "b: has 100 frames, but lasts 110" in table


def test_ids_that_occur_twice_in_a_shard_or_in_two_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    identity = CodeStore(store).identity
    codes = [np.zeros((50, 2), dtype=identity.code_dtype)] * 4
    write_shard(store / "shard-00001.arrow", identity, ["b", "c", "d", "d"], codes)  # no writer finishes such a store
    complete = json.loads((store / "complete.json").read_text())
    complete["shards"]["shard-00001.arrow"] = Shard(store / "shard-00001.arrow", identity).checksum
    (store / "complete.json").write_text(json.dumps(complete))
    assert verify.main([str(store), "--json"]) == 1
    found = read_json(capsys)
    assert sorted(found["duplicate_ids"]) == ["b", "d"]
    assert (found["num_rows"], found["num_frames"]) == (6, 350)


def test_each_bad_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    flip_byte(store / "shard-00000.arrow")
    (store / "shard-00001.arrow").unlink()
    assert verify.main([str(store), "--json"]) == 1
    damaged, missing = read_json(capsys)["bad_shards"]
    assert "shard-00000.arrow: the shard is damaged: its checksum does not match" in damaged
    assert "shard-00001.arrow: the shard is missing" in missing


def test_statistics_are_those_of_the_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store")
    assert stats.main([str(store), "--json"]) == 0
    found = read_json(capsys)
    assert (found["num_rows"], found["num_frames"], found["hours"]) == (4, 325, pytest.approx(325 / 50 / 3600))
    zeros = sum(-(-n // 2) for n in FRAMES.values()) / 325
    entropy = -zeros * math.log2(zeros) - (1 - zeros) * math.log2(1 - zeros)
    assert found["codebooks"] == [
        {"num_used_entries": 1, "usage": 1 / 300, "entropy_bits": 0.0, "perplexity": 1.0},
        {
            "num_used_entries": 2,
            "usage": 2 / 300,
            "entropy_bits": pytest.approx(entropy),
            "perplexity": pytest.approx(2**entropy),
        },
    ]
    assert stats.main([str(store)]) == 0
    assert "0.7 %" in capsys.readouterr().out


@pytest.mark.parametrize("command", [stats.main, verify.main])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / "store.json").write_text("{"), "store.json: cannot be read"),
        (lambda store: (store / "complete.json").unlink(), "The store is unfinished: start the same encode command"),
        (lambda store: flip_byte(store / "shard-00000.arrow"), "not sound|its checksum does not match"),
    ],
)
def test_a_damaged_store_gives_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Callable[[Sequence[str]], int],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    store = make_store(tmp_path / "store")
    damage(store)
    monkeypatch.setattr("sys.argv", ["command", str(store)])
    with pytest.raises(SystemExit) as exit_:
        run_command(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1
    assert line.startswith("error: ")
    assert any(part in line for part in message.split("|"))

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.corpus.console import run_command
from recipes.corpus.manifest import main
from recipes.corpus.scan import inspect_clips
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.data.scan import Clip, name_files
from tests.common import DATA_FOLDER

PROMPT = DATA_FOLDER / "speech" / "vm-login.g722"


def write_tone(path: Path, *, seconds: float = 0.5, rate: int = 16_000, num_channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    tone = 0.1 * np.sin(np.arange(round(seconds * rate)) * (2 * np.pi * 440 / rate))

    soundfile.write(path, np.stack([tone] * num_channels, axis=1), rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three speakers, five formats, two files that do not decode."""
    clips = tmp_path / "clips"

    write_tone(clips / "anna" / "bell_1.wav", seconds=0.5, rate=8000)
    write_tone(clips / "anna" / "bell_2.flac", seconds=1.0, rate=44_100, num_channels=2)
    write_tone(clips / "ben" / "horn_1.ogg", seconds=0.25, rate=22_050)
    write_tone(clips / "ben" / "horn_2.MP3", seconds=1.0, rate=16_000)

    (clips / "cleo").mkdir()

    shutil.copyfile(PROMPT, clips / "cleo" / "prompt_1.g722")

    write_tone(clips / "cleo" / "cut.flac", seconds=2.0)

    cut = clips / "cleo" / "cut.flac"

    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])

    (clips / "cleo" / "empty.wav").touch()

    (clips / "readme.txt").write_text("not audio")

    return clips


def make(folder: Path, *options: str) -> list[ManifestRow]:
    out = folder.parent / "out" / "clips.tsv"

    main([str(folder), str(out), "--domain", "speech", "--workers", "1", *options])

    return list(read_manifest(out))


def test_every_decodable_file_is_listed_with_its_true_length_and_rate(folder: Path) -> None:
    rows = make(folder)

    assert {row.id: (row.num_samples, row.sample_rate) for row in rows if "horn_2" not in row.id} == {
        "anna/bell_1": (4000, 8000),
        "anna/bell_2": (44_100, 44_100),
        "ben/horn_1": (5512, 22_050),
        "cleo/prompt_1": (2 * PROMPT.stat().st_size, 16_000),  # G.722: 64 kbit/s
    }

    assert "ben/horn_2" in {row.id for row in rows}

    assert all(row.path.is_file() for row in rows)


def test_bad_files_are_listed_with_one_line_of_reason_each(folder: Path) -> None:
    make(folder)

    header, *lines = (folder.parent / "out" / "clips.bad.tsv").read_text().splitlines()

    assert header == "path\treason"

    assert [Path(line.split("\t")[0]).name for line in lines] == ["cut.flac", "empty.wav"]

    assert all(line.split("\t")[1] for line in lines)


def test_a_list_of_bad_files_vanishes_with_the_last_bad_file(folder: Path) -> None:
    make(folder)

    for name in ("cut.flac", "empty.wav"):
        (folder / "cleo" / name).unlink()

    make(folder)

    assert not (folder.parent / "out" / "clips.bad.tsv").exists()


def test_the_number_of_workers_changes_no_byte(folder: Path) -> None:
    make(folder)

    alone = (folder.parent / "out" / "clips.tsv").read_bytes()

    make(folder, "--workers", "3")

    assert (folder.parent / "out" / "clips.tsv").read_bytes() == alone


def test_ids_keep_the_ending_where_they_would_collide() -> None:
    folder = Path("/clips")

    paths = [folder / "a.wav", folder / "a.flac", folder / "b.c.wav"]

    assert list(name_files(paths, folder).values()) == ["a.wav", "a.flac", "b.c"]


def test_a_name_that_a_manifest_cannot_hold_makes_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "a\tb.wav"

    write_tone(path)

    rows, bad = inspect_clips([Clip(id="a", path=path, domain="audio")], num_workers=1, title="")

    assert not rows

    assert "Rename" in bad[0].reason


def test_texts_come_from_sidecars(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "anna" / "bell_1.txt").write_text("Ding\ndong\n")

    texts = {row.id: row.text for row in make(folder, "--text-from", "sidecar")}

    assert texts["anna/bell_1"] == "Ding dong"

    assert texts["ben/horn_1"] == ""

    assert "gives nothing for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.tsv", 'anna/bell_1\tding, "dong"\nben/horn_1.ogg\ttoot\n'),
        ("texts.csv", 'anna/bell_1,"ding, ""dong"""\nben/horn_1.ogg,toot\n'),
    ],
)
def test_texts_come_from_a_table_by_id_or_path(folder: Path, name: str, content: str) -> None:
    table = folder.parent / name

    table.write_text(content)

    texts = {row.id: row.text for row in make(folder, "--text-from", str(table)) if row.text}

    assert texts == {"anna/bell_1": 'ding, "dong"', "ben/horn_1": "toot"}


def test_labels_and_speakers_come_from_names(folder: Path) -> None:
    rows = make(folder, "--label-from", "stem-prefix", "--speaker-from", "folder", "--language", "en")

    assert {(row.label, row.speaker) for row in rows} == {("bell", "anna"), ("horn", "ben"), ("prompt", "cleo")}

    assert {row.language for row in rows} == {"en"}


def test_a_validation_split_shares_no_speaker_with_training(tmp_path: Path) -> None:
    for speaker in range(20):
        for take in range(3):
            write_tone(tmp_path / "clips" / f"s{speaker}" / f"{take}.wav", seconds=0.01)

    arguments = [str(tmp_path / "clips"), str(tmp_path / "all.tsv"), "--domain", "speech", "--workers", "1"]

    main([*arguments, "--speaker-from", "top-folder", "--valid-fraction", "0.3", "--split-by", "speaker"])

    train, valid = (read_manifest(tmp_path / f"all-{side}.tsv") for side in ("train", "valid"))

    assert len(train) + len(valid) == 60

    assert 3 <= len(valid) <= 30

    assert not {row.speaker for row in train} & {row.speaker for row in valid}


def fail(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    out = str(folder.parent / "out.tsv")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["manifest", str(folder), out, "--domain", "speech", "--workers", "1", *options])

        with pytest.raises(SystemExit) as exit_:
            run_command(main)

    assert exit_.value.code == 1

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]

    assert len(lines) == 1

    return lines[0]


def test_a_missing_folder_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such folder" in fail(tmp_path / "none", capsys)


def test_a_folder_without_audio_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no audio file" in fail(tmp_path, capsys)


def test_a_folder_of_bad_files_only_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").touch()

    assert "none of 1 files is good" in fail(tmp_path, capsys)


def test_a_table_that_names_no_file_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "texts.tsv").write_text("who\twhat\n")

    assert "names none of the 7 files" in fail(folder, capsys, "--text-from", str(folder.parent / "texts.tsv"))


def test_an_unknown_source_of_labels_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--label-from must be folder, top-folder" in fail(folder, capsys, "--label-from", "guess")

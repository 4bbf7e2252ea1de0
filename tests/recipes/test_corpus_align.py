from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recipes.corpus.align import Aligner, AlignmentError, align_rows, main, spoken_words
from recipes.corpus.console import CorpusError
from spear_plugin.data.alignments import AlignmentFileError, Segment, read_alignment, write_alignment
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from tests.common import DATA_FOLDER


@pytest.fixture(scope="module")
def rows() -> dict[str, ManifestRow]:
    return {row.label: row for row in read_manifest(DATA_FOLDER / "speech.tsv")}


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner()


def without_silence(segments: list[Segment]) -> list[Segment]:
    return [segment for segment in segments if segment.phone != "SIL"]


def test_the_phones_of_a_prompt_are_those_of_the_dictionary(rows: dict[str, ManifestRow], aligner: Aligner) -> None:
    row = rows["one-moment-please"]

    segments = without_silence(aligner(read_audio(row.path), row.text))

    assert [segment.phone for segment in segments] == "W AH N M OW M AH N T P L IY Z".split()  # noqa: SIM905

    assert [segment.word for segment in segments] == ["one"] * 3 + ["moment"] * 6 + ["please"] * 4


def test_segments_follow_on_one_another_within_the_recording(rows: dict[str, ManifestRow], aligner: Aligner) -> None:
    row = rows["vm-repeat"]

    segments = aligner(read_audio(row.path), row.text)

    assert segments[0].start == 0.0

    assert [segment.end for segment in segments[:-1]] == [segment.start for segment in segments[1:]]

    assert row.duration - 0.1 < segments[-1].end <= row.duration


def test_silence_before_a_prompt_moves_its_phones(rows: dict[str, ManifestRow], aligner: Aligner) -> None:
    row = rows["one-moment-please"]

    waveform = read_audio(row.path)

    noise = np.random.default_rng(0).normal(scale=1e-4, size=8000).astype(np.float32)

    plain = without_silence(aligner(waveform, row.text))

    moved = without_silence(aligner(np.concatenate([noise, waveform]), row.text))

    shifts = np.array([late.start - early.start for early, late in zip(plain[1:], moved[1:], strict=True)])

    np.testing.assert_allclose(shifts, 0.5, atol=0.06)


def test_an_alignment_does_not_depend_on_what_was_aligned_before(rows: dict[str, ManifestRow]) -> None:
    waveforms = {name: read_audio(rows[name].path) for name in ("vm-login", "one-moment-please", "vm-duration")}

    aligner = Aligner()

    first = {name: aligner(waveform, rows[name].text) for name, waveform in waveforms.items()}

    aligner(0.05 * waveforms["vm-login"], rows["vm-login"].text)

    assert {name: aligner(waveforms[name], rows[name].text) for name in reversed(waveforms)} == first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 5, please!", ["press", "five", "please"]),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m 'here'", ["i'm", "here"]),
        ("Call-Forward", ["call", "forward"]),
    ],
)
def test_texts_become_words_of_the_dictionary(text: str, words: list[str]) -> None:
    assert spoken_words(text) == words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dial 600", "number that may be read in several ways: 600"),
        ("...", "no words"),
        ("press xyzzyx", "does not know: xyzzyx"),
    ],
)
def test_a_text_that_cannot_be_laid_on_a_recording_says_why(aligner: Aligner, text: str, reason: str) -> None:
    with pytest.raises(AlignmentError, match=reason):
        aligner(np.zeros(16_000, dtype=np.float32), text)


def test_the_command_gives_the_same_file_from_one_and_from_two_processes(
    tmp_path: Path, rows: dict[str, ManifestRow]
) -> None:
    chosen = [rows[label] for label in ("vm-login", "one-moment-please", "vm-duration", "dir-first")]

    write_manifest(tmp_path / "manifest.tsv", chosen)

    for workers in ("1", "2"):
        main([str(tmp_path / "manifest.tsv"), str(tmp_path / f"{workers}.tsv"), "--workers", workers])

    assert (tmp_path / "1.tsv").read_bytes() == (tmp_path / "2.tsv").read_bytes()

    assert list(read_alignment(tmp_path / "1.tsv")) == [row.id for row in chosen]


def test_rows_that_cannot_be_aligned_are_listed(tmp_path: Path, rows: dict[str, ManifestRow]) -> None:
    row = rows["vm-login"]

    bad = [replace(row, id="wrong", text="dial 600"), replace(row, id="lost", path=tmp_path / "lost.wav")]

    aligned, unaligned = align_rows([bad[0], row, bad[1]], num_workers=1)

    assert list(aligned) == [row.id]

    assert [entry.id for entry in unaligned] == ["wrong", "lost"]


def test_an_alignment_is_read_as_it_was_written(tmp_path: Path) -> None:
    alignment = {
        "b": [Segment(0.0, 0.1, "SIL", "<sil>"), Segment(0.1, 0.25, "AY", "i")],
        "a": [Segment(0.0, 1.0, "AH", "a")],
    }

    write_alignment(tmp_path / "a.tsv", alignment)

    assert read_alignment(tmp_path / "a.tsv") == alignment


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the header must be id start end phone word"),
        (["id\tstart"], "the header must be id start end phone word"),
        (["id\tstart\tend\tphone\tword", "a\t0.0\t0.1\tAH"], "a.tsv, line 2: must have five fields"),
        (["id\tstart\tend\tphone\tword", "a\t0.0\tend\tAH\ta"], "a.tsv, line 2: must have five fields"),
    ],
)
def test_what_is_no_alignment_is_refused_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "a.tsv").write_text("\n".join(lines))

    with pytest.raises(AlignmentFileError, match=message):
        read_alignment(tmp_path / "a.tsv")


def test_a_manifest_without_english_text_is_an_error(tmp_path: Path) -> None:
    row = ManifestRow(
        id="a", path=tmp_path / "a.wav", num_samples=1, sample_rate=1, domain="speech", text="un", language="fr"
    )

    write_manifest(tmp_path / "fr.tsv", [row])

    with pytest.raises(CorpusError, match="no English row with text"):
        main([str(tmp_path / "fr.tsv"), str(tmp_path / "out.tsv")])

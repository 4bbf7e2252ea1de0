from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.corpus.console import CorpusError
from recipes.corpus.package_store import PackageStore
from recipes.corpus.packaged import cut_clip, main
from recipes.corpus.packages import PINNED_PACKAGES, PinnedPackage
from recipes.corpus.sources import CORPORA, EVERYTHING, resolve_corpora
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import read_manifest
from spear_plugin.data.scan import Clip

NAME = "sonic-pi-samples"

# Prints what apt prints, and copies instead of fetching. Without lists it knows no package, like apt.
FAKE_APT = """\
#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in
  *update*) touch {folder}/updated; exit 0;;
esac
if [ -e {folder}/no_lists ] && [ ! -e {folder}/updated ]; then echo "E: Unable to locate package" >&2; exit 100; fi
if [ -e {folder}/offline ]; then echo "E: Could not resolve host" >&2; exit 100; fi
case "$*" in
  *--print-uris*) echo "'http://mirror/{file}' {file} {size} SHA256:{sha256}";;
  *) cp {folder}/{file} .;;
esac
"""


def build_package(folder: Path, version: str) -> str:
    """Make a package with five drum sounds and return its file name."""
    tree = folder / "tree"

    for number in range(6):
        path = tree / "usr/share/sonic-pi/samples" / f"drum_{number}.flac"

        path.parent.mkdir(parents=True, exist_ok=True)

        soundfile.write(path, np.random.default_rng(number).normal(scale=0.1, size=4000), 16_000)

    (tree / "usr/share/sonic-pi/samples/drum_5.flac").write_bytes(b"")

    notice = tree / "usr/share/doc" / NAME / "copyright"

    notice.parent.mkdir(parents=True)

    notice.write_text("CC0\n")

    (tree / "DEBIAN").mkdir()

    (tree / "DEBIAN/control").write_text(
        f"Package: {NAME}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
    )

    file_name = f"{NAME}_{version}_all.deb"

    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, folder / file_name], check=True, capture_output=True
    )

    return file_name


class Mirror:
    """A stand-in for apt in ``folder``, with one package."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, version: str = "9.9-1") -> None:
        self.folder = folder

        folder.mkdir()

        file = build_package(folder, version)

        content = (folder / file).read_bytes()

        self.sha256 = hashlib.sha256(content).hexdigest()

        apt = folder / "bin" / "apt-get"

        apt.parent.mkdir()

        apt.write_text(FAKE_APT.format(folder=folder, file=file, size=len(content), sha256=self.sha256))

        apt.chmod(0o755)

        monkeypatch.setenv("PATH", str(apt.parent), prepend=":")

    def calls(self) -> list[str]:
        path = self.folder / "calls"

        return path.read_text().splitlines() if path.exists() else []


def make_store(tmp_path: Path) -> PackageStore:
    return PackageStore(tmp_path / "out" / "packages", tmp_path / "out" / "licences")


def test_the_command_goes_from_packages_to_manifests_and_the_second_time_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tmp_path / "mirror", monkeypatch)

    out = tmp_path / "out"

    for _ in range(2):
        main([str(out), "--corpora", "sonic_pi", "--workers", "1"])

        assert len(mirror.calls()) == 2  # one question, one download

    rows = [*read_manifest(out / "audio" / "train.tsv"), *read_manifest(out / "audio" / "valid.tsv")]

    assert sorted((row.id, row.label) for row in rows) == [(f"sonic_pi/drum_{number}", "drum") for number in range(5)]

    assert "drum_5.flac" in (out / "corpora" / "sonic_pi.bad.tsv").read_text()

    assert (out / "licences" / f"{NAME}.copyright").read_text() == "CC0\n"

    assert mirror.sha256 in (out / "ATTRIBUTION.md").read_text()

    assert (out / "probe" / "events.tsv").exists()

    assert not list((out / "packages").rglob("*.deb"))


def test_an_unpacking_that_was_interrupted_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(tmp_path / "mirror", monkeypatch)

    store = make_store(tmp_path)

    store.fetch([NAME])

    sample = store.root / "usr/share/sonic-pi/samples/drum_0.flac"

    complete = sample.read_bytes()

    sample.write_bytes(b"half")

    (tmp_path / "out" / "packages" / f"{NAME}.json").unlink()  # written last

    store.fetch([NAME])

    assert sample.read_bytes() == complete


def test_another_version_than_the_pinned_one_is_verified_by_apts_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tmp_path / "mirror", monkeypatch)

    store = make_store(tmp_path)

    store.fetch([NAME])

    assert store.fetched(NAME).verified_by == "apt's signed package lists"

    assert (store.fetched(NAME).version, store.fetched(NAME).sha256) == ("9.9-1", mirror.sha256)


def test_the_pinned_version_is_verified_by_our_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(tmp_path / "mirror", monkeypatch, version="1.0-1")

    monkeypatch.setitem(PINNED_PACKAGES, NAME, PinnedPackage("1.0-1", mirror.sha256, "CC0", "nobody"))

    store = make_store(tmp_path)

    store.fetch([NAME])

    assert store.fetched(NAME).verified_by == "pinned checksum"


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(tmp_path / "mirror", monkeypatch, version="1.0-1")

    monkeypatch.setitem(PINNED_PACKAGES, NAME, PinnedPackage("1.0-1", "0" * 64, "CC0", "nobody"))

    with pytest.raises(CorpusError, match=rf"{NAME}_1.0-1_all.deb: the SHA-256 must be 0{{64}} \(pinned checksum\)"):
        make_store(tmp_path).fetch([NAME])

    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_missing_package_lists_are_fetched_to_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tmp_path / "mirror", monkeypatch)

    (mirror.folder / "no_lists").touch()

    make_store(tmp_path).fetch([NAME])

    update = next(call for call in mirror.calls() if call.endswith("update"))

    assert f"Dir::State::Lists={tmp_path}/out/packages/apt/lists" in update


def test_a_network_that_is_down_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(tmp_path / "mirror", monkeypatch)

    (mirror.folder / "offline").touch()

    with pytest.raises(CorpusError, match=r"^apt offers not all of .*Could not resolve host\. [^\n]*$"):
        make_store(tmp_path).fetch([NAME])


def test_a_machine_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CorpusError, match=r"apt-get is missing.*recipes\.corpus\.manifest"):
        make_store(tmp_path).fetch([NAME])


def test_every_corpus_needs_packages_that_are_pinned() -> None:
    needed = {name for corpus in CORPORA.values() for name in corpus.packages}

    assert needed == set(PINNED_PACKAGES)

    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) for package in PINNED_PACKAGES.values())


def test_groups_name_their_corpora_once() -> None:
    assert [corpus.name for corpus in resolve_corpora(["fillets_cs", "fillets"])] == ["fillets_cs", "fillets_nl"]

    assert {corpus.name for corpus in resolve_corpora(EVERYTHING)} == set(CORPORA)

    with pytest.raises(CorpusError, match=r"corpus must be one of asterisk, .* but is 'librispeech'"):
        resolve_corpora(["librispeech"])


def write_file(path: Path, content: str | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    path.write_bytes(content.encode() if isinstance(content, str) else content)


def list_clips(corpus: str, root: Path) -> dict[str, Clip]:
    return {clip.id: clip for clip in CORPORA[corpus].list_clips(root)}


def test_asterisk_prompts_have_texts_without_stage_directions(tmp_path: Path) -> None:
    lines = (
        "; title\n\nhello: Hello: world.  \ndigits/1: one\nbeep: [this is a tone]\nletters/at: at [@]\n"
        "silence/1: (1 second of silence)\n"
    )

    write_file(tmp_path / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", gzip.compress(lines.encode()))

    for name in ("hello", "digits/1", "beep", "letters/at", "silence/1", "untold"):
        write_file(tmp_path / f"usr/share/asterisk/sounds/en_US_f_Allison/{name}.g722")

    clips = list_clips("asterisk_en", tmp_path)

    assert {id_: clip.text for id_, clip in clips.items()} == {
        "asterisk/en/hello": "Hello: world.",
        "asterisk/en/digits/1": "one",
        "asterisk/en/letters/at": "at",
        "asterisk/en/untold": "",
    }

    assert clips["asterisk/en/digits/1"].speaker == "en_US_f_Allison"


def test_dialogues_have_characters_and_texts(tmp_path: Path) -> None:
    game = tmp_path / "usr/share/games/fillets-ng"

    write_file(
        game / "script/city/dialogs_cs.lua",
        '\ndialogId("a", "font_small", "Say \\"hi\\".")\ndialogStr("Řekni \\"ahoj\\".\\nTeď.")\n\n\n'
        'dialogId("silent", "font_big", "No sound.")\ndialogStr("Nic.")\n',
    )

    write_file(game / "sound/city/cs/a.ogg")

    (clip,) = list_clips("fillets_cs", tmp_path).values()

    assert (clip.id, clip.text, clip.speaker) == ("fillets/cs/city/a", 'Řekni "ahoj". Teď.', "small")


def test_stamps_are_told_apart_into_speech_and_effects(tmp_path: Path) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps"

    write_file(stamps / "animals/crow.txt", "A crow.\nfr.utf8=Un corbeau.\npt_BR.utf8=Um corvo.\n")

    for name in (
        "animals/crow_desc",
        "animals/crow_desc_fr",
        "animals/crow_desc_da.ogg",
        "animals/crow",
        "symbols/math/7_el",
    ):
        write_file(stamps / f"{name}.ogg")

    write_file(stamps / "animals/crow_desc_pt_BR.wav")

    speech, effects = list_clips("tuxpaint_speech", tmp_path), list_clips("tuxpaint_effects", tmp_path)

    assert {(clip.language, clip.text) for clip in speech.values()} == {
        ("en", "A crow."), ("fr", "Un corbeau."), ("da", ""), ("pt_BR", "Um corvo."), ("el", "")
    }  # fmt: skip

    assert [(clip.id, clip.label) for clip in effects.values()] == [("tuxpaint/effects/animals/crow", "animals")]


def test_pieces_of_a_recording_join_to_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"

    samples = np.random.default_rng(0).integers(-(2**14), 2**14, size=26_000).astype(np.int16)

    soundfile.write(path, samples, 8000)

    pieces = cut_clip(Clip(id="music/song", path=path, domain="audio", label="music"), tmp_path / "pieces", 1.0)

    assert [piece.id for piece in pieces] == ["music/song#0", "music/song#1", "music/song#2"]

    waveforms = [read_audio(piece.path, sample_rate=8000) for piece in pieces]

    assert [waveform.size for waveform in waveforms] == [8000, 8000, 10_000]

    np.testing.assert_array_equal(np.concatenate(waveforms), read_audio(path, sample_rate=8000))


def test_a_short_recording_is_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "jingle.wav"

    soundfile.write(path, np.full(1000, 0.1), 8000)

    assert len(cut_clip(Clip(id="jingle", path=path, domain="audio"), tmp_path / "pieces", 1.0)) == 1

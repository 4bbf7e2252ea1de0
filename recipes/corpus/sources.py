"""The packaged corpora: which packages each needs, and where in them the recordings, texts and labels lie."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

from recipes.corpus.console import CorpusError
from spear_plugin.data.manifest import Domain
from spear_plugin.data.scan import Clip, find_audio_files

ASTERISK_HOURS: Final = {"en": 0.40, "es": 0.49, "fr": 0.41, "it": 0.38, "ru": 0.39}
FILLETS_HOURS: Final = {"cs": 1.62, "nl": 1.52}


@final
@dataclass(frozen=True)
class PackagedCorpus:
    name: str

    packages: tuple[str, ...]

    list_clips: Callable[[Path], Iterator[Clip]]
    """From the root of the unpacked packages to clips with unique ids."""

    num_megabytes: int
    """To download, for all packages."""

    num_hours: float
    """Of good recordings, in the pinned versions; for the help text."""

    piece_seconds: float = 0.0
    """Recordings of minutes are cut into pieces of this length; 0 leaves them whole."""


def resolve_corpora(names: Sequence[str]) -> list[PackagedCorpus]:
    """Return corpora by name or by group (``asterisk`` means all of its languages), each once.

    :raises CorpusError: If a name is neither.
    """
    chosen: dict[str, PackagedCorpus] = {}

    for name in names:
        members = GROUPS.get(name, (name,))

        if unknown := [member for member in members if member not in CORPORA]:
            raise CorpusError(f"corpus must be one of {', '.join([*GROUPS, *CORPORA])}, but is '{unknown[0]}'.")

        chosen.update({member: CORPORA[member] for member in members})

    return list(chosen.values())


def _asterisk(language: str, root: Path) -> Iterator[Clip]:
    text_file = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"

    with gzip.open(text_file, "rt", encoding="utf-8") as stream:
        lines = [line.split(":", maxsplit=1) for line in stream if ":" in line and not line.startswith(";")]

    texts = {name: text.strip() for name, text in lines}

    for folder in sorted((root / "usr/share/asterisk/sounds").glob(f"{language}_*")):
        for path in sorted(folder.rglob("*.g722")):
            name = path.relative_to(folder).with_suffix("").as_posix()

            text = _spoken_part(texts.get(name, ""))

            if name.startswith("silence/") or (name in texts and not text):  # a tone, described in brackets
                continue

            yield Clip(
                id=f"asterisk/{language}/{name}",
                path=path,
                domain="speech",
                text=text,
                label=name,
                speaker=folder.name,
                language=language,
            )


def _spoken_part(text: str) -> str:
    return re.sub(r"[\[(<][^\])>]*[\])>]", "", text).strip()


_DIALOGUE: Final = re.compile(
    # dialogId("clip", "font_CHARACTER", "English text") dialogStr("text")
    r'dialogId\("(?P<clip>[^"]+)",\s*"(?:font_)?(?P<character>[^"]*)",\s*"(?:[^"\\]|\\.)*"\)\s*'
    r'dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)'
)


def _fillets(language: str, root: Path) -> Iterator[Clip]:
    game = root / "usr/share/games/fillets-ng"

    clips: dict[Path, Clip] = {}

    for script in sorted((game / "script").rglob(f"dialogs_{language}.lua")):
        level = script.parent.relative_to(game / "script").as_posix()

        for line in _DIALOGUE.finditer(script.read_text(encoding="utf-8")):
            path = game / "sound" / level / language / f"{line['clip']}.ogg"

            if path.exists():
                clips[path] = Clip(
                    id=f"fillets/{language}/{level}/{line['clip']}",
                    path=path,
                    domain="speech",
                    text=re.sub(r"\\(.)", lambda escaped: escaped[1].replace("n", " "), line["text"]),
                    label=level,
                    speaker=line["character"],
                    language=language,
                )

    yield from clips.values()


def _fillets_effects(root: Path) -> Iterator[Clip]:
    sound = root / "usr/share/games/fillets-ng/sound"

    for path in sorted([*sound.glob("*/en/*.ogg"), *sound.glob("share/*.ogg")]):
        label = path.stem.rstrip("0123456789_")

        yield _labelled(path, f"fillets/effects/{path.relative_to(sound).parts[0]}/{path.stem}", label)


def _fillets_music(root: Path) -> Iterator[Clip]:
    for path in sorted((root / "usr/share/games/fillets-ng/music").glob("*.ogg")):
        yield _labelled(path, f"fillets/music/{path.stem}", "music")


_STAMP_SOUND: Final = re.compile(r"(?P<stamp>.+?)(?P<spoken>_desc)?(?:_(?P<language>[a-z]{2}(?:_[A-Za-z]{2})?))?")

_SPOKEN_SYMBOLS: Final = ("symbols/math/", "symbols/alphabets/")


def _tuxpaint(domain: Domain, root: Path) -> Iterator[Clip]:
    stamps = root / "usr/share/tuxpaint/stamps"

    for path in find_audio_files(stamps):
        name = path.relative_to(stamps).with_suffix("").as_posix()

        match = _STAMP_SOUND.fullmatch(name.removesuffix(".ogg"))  # one file ends in .ogg.ogg

        assert match is not None

        if not match["spoken"] and not name.startswith(_SPOKEN_SYMBOLS):
            if domain == "audio":
                yield _labelled(path, f"tuxpaint/effects/{name}", name.split("/")[0])
        elif domain == "speech":
            language = match["language"] or "en"

            yield Clip(
                id=f"tuxpaint/{language}/{name}",
                path=path,
                domain="speech",
                text=_stamp_text(stamps / f"{match['stamp']}.txt", language) if match["spoken"] else "",
                speaker=f"tuxpaint_{language}",
                language=language,
            )


def _stamp_text(path: Path, language: str) -> str:
    # The first line is English, the others `LANGUAGE.utf8=TEXT`.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    if language == "en":
        return lines[0] if lines else ""

    return next((line.split("=", 1)[1] for line in lines if line.startswith(f"{language}.utf8=")), "")


def _sonic_pi(root: Path) -> Iterator[Clip]:
    for path in sorted((root / "usr/share/sonic-pi/samples").glob("*.flac")):
        yield _labelled(path, f"sonic_pi/{path.stem}", path.stem.split("_")[0])


def _lmms(root: Path) -> Iterator[Clip]:
    samples = root / "usr/share/lmms/samples"

    for path in find_audio_files(samples):
        name = path.relative_to(samples).with_suffix("").as_posix()

        yield _labelled(path, f"lmms/{name}", name.split("/")[0])


def _labelled(path: Path, id_: str, label: str) -> Clip:
    return Clip(id=id_, path=path, domain="audio", label=label)


_ASTERISK_CORPORA: Final = {
    f"asterisk_{language}": PackagedCorpus(
        f"asterisk_{language}",
        (f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"),
        partial(_asterisk, language),
        num_megabytes=11,
        num_hours=num_hours,
    )
    for language, num_hours in ASTERISK_HOURS.items()
}

_FILLETS_CORPORA: Final = {
    f"fillets_{language}": PackagedCorpus(
        f"fillets_{language}",
        ("fillets-ng-data", f"fillets-ng-data-{language}"),
        partial(_fillets, language),
        num_megabytes=110,
        num_hours=num_hours,
    )
    for language, num_hours in FILLETS_HOURS.items()
}

CORPORA: Final = {
    **_ASTERISK_CORPORA,
    **_FILLETS_CORPORA,
    "tuxpaint_speech": PackagedCorpus(
        "tuxpaint_speech", ("tuxpaint-stamps-default",), partial(_tuxpaint, "speech"), num_megabytes=161, num_hours=3.0
    ),
    "sonic_pi": PackagedCorpus("sonic_pi", ("sonic-pi-samples",), _sonic_pi, num_megabytes=22, num_hours=0.09),
    "fillets_effects": PackagedCorpus(
        "fillets_effects", ("fillets-ng-data",), _fillets_effects, num_megabytes=71, num_hours=0.11
    ),
    "fillets_music": PackagedCorpus(
        "fillets_music", ("fillets-ng-data",), _fillets_music, num_megabytes=71, num_hours=0.41, piece_seconds=10.0
    ),
    "tuxpaint_effects": PackagedCorpus(
        "tuxpaint_effects", ("tuxpaint-stamps-default",), partial(_tuxpaint, "audio"), num_megabytes=161, num_hours=0.07
    ),
    "lmms": PackagedCorpus("lmms", ("lmms-common",), _lmms, num_megabytes=8, num_hours=0.1),
}

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "asterisk": tuple(_ASTERISK_CORPORA),
    "fillets": tuple(_FILLETS_CORPORA),
    "tuxpaint": ("tuxpaint_speech", "tuxpaint_effects"),
    "effects": ("fillets_effects", "fillets_music", "tuxpaint_effects", "lmms"),
}

SMALL: Final = ("asterisk_en", "sonic_pi")
DEFAULT: Final = ("asterisk", "fillets_cs", "sonic_pi", "effects")
EVERYTHING: Final = tuple(CORPORA)

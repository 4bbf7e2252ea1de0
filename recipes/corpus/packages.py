"""The Debian packages with recordings: the versions this project was tried with, their makers and licences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from spear_plugin.data.files import atomic_file


@final
@dataclass(frozen=True)
class PinnedPackage:
    """The version of a package that this project was tried with."""

    version: str
    sha256: str
    licence: str
    """Of the recordings, in short; the package's copyright file is what counts."""

    credit: str


_ASTERISK: Final = "Asterisk prompts, "
_FILLETS: Final = "Fish Fillets NG, ALTAR interactive and contributors, "
_BY_SA: Final = "CC-BY-SA-3.0"
_BY: Final = "CC-BY-3.0"

PINNED_PACKAGES: Final = {
    "asterisk-core-sounds-en": PinnedPackage(
        "1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50", _BY_SA, _ASTERISK + "texts"
    ),
    "asterisk-core-sounds-en-g722": PinnedPackage(
        "1.6.1-1",
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
        _BY_SA,
        _ASTERISK + "Allison Smith",
    ),
    "asterisk-core-sounds-es": PinnedPackage(
        "1.6.1-1", "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74", _BY_SA, _ASTERISK + "texts"
    ),
    "asterisk-core-sounds-es-g722": PinnedPackage(
        "1.6.1-1",
        "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
        _BY_SA,
        _ASTERISK + "Allison Smith",
    ),
    "asterisk-core-sounds-fr": PinnedPackage(
        "1.6.1-1", "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056", _BY_SA, _ASTERISK + "texts"
    ),
    "asterisk-core-sounds-fr-g722": PinnedPackage(
        "1.6.1-1",
        "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
        _BY_SA,
        _ASTERISK + "June Wallack",
    ),
    "asterisk-core-sounds-it": PinnedPackage(
        "1.6.1-1", "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b", _BY, _ASTERISK + "texts"
    ),
    "asterisk-core-sounds-it-g722": PinnedPackage(
        "1.6.1-1", "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", _BY, _ASTERISK + "Carlo Flora"
    ),
    "asterisk-core-sounds-ru": PinnedPackage(
        "1.6.1-1", "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab", _BY, _ASTERISK + "texts"
    ),
    "asterisk-core-sounds-ru-g722": PinnedPackage(
        "1.6.1-1", "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", _BY, _ASTERISK + "Maxim Topal"
    ),
    "fillets-ng-data": PinnedPackage(
        "1.0.1-1.1",
        "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
        "GPL-2",
        _FILLETS + "effects, texts",
    ),
    "fillets-ng-data-cs": PinnedPackage(
        "1.0.1-1.1",
        "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
        "GPL-2",
        _FILLETS + "Czech voices",
    ),
    "fillets-ng-data-nl": PinnedPackage(
        "1.0.1-1.1",
        "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
        "GPL-2",
        _FILLETS + "Dutch voices",
    ),
    "lmms-common": PinnedPackage(
        "1.2.2+dfsg1-6", "7d9aa55dd05f11edc57104203ee1c350e3e41f8936ab3741da2bb1158fd46c37", "GPL-2+", "LMMS developers"
    ),
    "sonic-pi-samples": PinnedPackage(
        "3.2.2~repack-8",
        "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d",
        "CC0 (130 of 165), else MIT or as the copyright file says",
        "Sonic Pi, S. Aaron, and the freesound.org users named in the copyright file",
    ),
    "tuxpaint-stamps-default": PinnedPackage(
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
        "Tux Paint stamps, B. Kendrick and contributors",
    ),
}


@final
@dataclass(frozen=True)
class FetchedPackage:
    """A package as it lies unpacked below OUT."""

    name: str
    version: str
    sha256: str
    verified_by: str


def write_attribution(path: Path, packages: Sequence[FetchedPackage]) -> None:
    """Write a Markdown table of the packages with credit and licence."""
    lines = [
        "# Where the recordings come from\n",
        "Unpacked from Debian packages; `licences/` holds the copyright file of each.\n",
        "| package | version | by | licence | SHA-256 of the package, verified by |",
        "|---|---|---|---|---|",
    ]

    for package in packages:
        pinned = PINNED_PACKAGES[package.name]

        lines.append(
            f"| {package.name} | {package.version} | {pinned.credit} | {pinned.licence} | "
            f"{package.sha256}, {package.verified_by} |"
        )

    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

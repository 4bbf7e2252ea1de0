"""Debian packages fetched by apt, verified, unpacked, and their licences kept.

Nothing is installed and no privileges are needed: ``apt-get download`` fetches, ``dpkg-deb -x`` unpacks below OUT. When
the machine's package lists are missing or stale, lists of our own are fetched to OUT/packages/apt, with the machine's
sources and keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from recipes.corpus.console import STDERR, CorpusError
from recipes.corpus.packages import PINNED_PACKAGES, FetchedPackage
from spear_plugin.data.files import atomic_file


@final
@dataclass(frozen=True)
class _Offer:
    name: str
    version: str
    file_name: str
    num_bytes: int
    sha256: str
    """As apt's signed lists say."""


class PackageStore:
    """Packages unpacked into one tree, ``folder/root``, and for each complete package a note, ``folder/NAME.json``.

    Unpacking twice is harmless, therefore the note alone makes fetching safe against interruption.
    """

    def __init__(self, folder: Path, licence_folder: Path) -> None:
        self._folder = folder
        self._licence_folder = licence_folder
        self._download_folder = folder / "downloads"
        self._apt_options: list[str] = []

        self.root: Final = folder / "root"

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch, verify and unpack the packages that are not there yet.

        :raises CorpusError: If apt is missing, offers no such package or cannot fetch it, or a checksum is wrong.
        """
        missing = [name for name in names if not self._note(name).exists()]

        if not missing:
            return

        for program in ("apt-get", "dpkg-deb"):
            if shutil.which(program) is None:
                raise CorpusError(
                    f"{program} is missing: the packaged corpora are Debian packages and need Debian or Ubuntu. "
                    "Elsewhere, make a manifest of your own recordings with `python -m recipes.corpus.manifest`."
                )

        self._download_folder.mkdir(parents=True, exist_ok=True)

        offers = self._query(missing)

        with _download_progress(sum(offer.num_bytes for offer in offers)) as report:
            for offer in offers:
                self._download(offer, report)

                self._install(offer)

    def fetched(self, name: str) -> FetchedPackage:
        """Return what the note of a package says."""
        return FetchedPackage(**json.loads(self._note(name).read_text()))

    def changed_at(self, names: Sequence[str]) -> float:
        """Return the time (seconds since the epoch) at which the last of the packages was unpacked."""
        return max(self._note(name).stat().st_mtime for name in names)

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _query(self, names: Sequence[str]) -> list[_Offer]:
        command = ["download", "--print-uris", *names]

        output = self._apt(command)

        if output.returncode != 0:
            self._update_own_lists()

            output = self._apt(command)

        if output.returncode != 0:
            raise CorpusError(
                f"apt offers not all of {', '.join(names)}: {_last_line(output.stderr)} They are in Debian's section "
                "main and in Ubuntu's universe; see the sources in /etc/apt."
            )

        return [_parse_offer(line) for line in output.stdout.splitlines() if line.startswith("'")]

    def _update_own_lists(self) -> None:
        STDERR.print("the machine's package lists are missing or stale: fetching our own (10 MB)", highlight=False)

        state = (self._folder / "apt").absolute()

        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)

        self._apt_options = ["-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]

        output = self._apt(["update"])

        if output.returncode != 0:
            raise CorpusError(
                f"apt cannot fetch package lists: {_last_line(output.stderr)} Check the network, or run `apt-get "
                "update` as root and start again."
            )

    def _download(self, offer: _Offer, report: Callable[[Path], None]) -> None:
        path = self._download_folder / offer.file_name

        command = ["download", f"{offer.name}={offer.version}"]

        output = self._apt(command, lambda: report(path))

        if output.returncode != 0 and not self._apt_options:
            self._update_own_lists()

            output = self._apt(command, lambda: report(path))

        if output.returncode != 0:
            raise CorpusError(
                f"{offer.file_name} cannot be fetched: {_last_line(output.stderr)} Check the network and start again; "
                "finished packages are kept."
            )

        report(path)

    def _apt(self, arguments: list[str], poll: Callable[[], None] = lambda: None) -> subprocess.CompletedProcess[str]:
        # The sandbox user could not write to the download folder.
        options = ["-q", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", *self._apt_options]

        with subprocess.Popen(
            ["apt-get", *options, *arguments],
            cwd=self._download_folder,
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while True:
                try:
                    stdout, stderr = process.communicate(timeout=0.2)
                except subprocess.TimeoutExpired:
                    poll()
                else:
                    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def _install(self, offer: _Offer) -> None:
        path = self._download_folder / offer.file_name

        package = FetchedPackage(
            offer.name, offer.version, *verify_package(path, offer.name, offer.version, offer.sha256)
        )

        self.root.mkdir(exist_ok=True)

        unpacked = subprocess.run(["dpkg-deb", "-x", path, self.root], capture_output=True, text=True, check=False)

        if unpacked.returncode != 0:
            raise CorpusError(f"{path} cannot be unpacked: {_last_line(unpacked.stderr)} Is the disk full?")

        self._licence_folder.mkdir(parents=True, exist_ok=True)

        shutil.copyfile(
            self.root / "usr/share/doc" / offer.name / "copyright", self._licence_folder / f"{offer.name}.copyright"
        )

        with atomic_file(self._note(offer.name)) as note:
            note.write_text(json.dumps(asdict(package), indent=1) + "\n")

        path.unlink()


def verify_package(path: Path, name: str, version: str, apt_sha256: str) -> tuple[str, str]:
    """Return the file's SHA-256 and who vouches for it: our table for the pinned version, else apt's signed lists.

    :raises CorpusError: If the checksum is another; the file is removed, so that the next start fetches it again.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()

    pinned = PINNED_PACKAGES[name]

    expected, verified_by = (
        (pinned.sha256, "pinned checksum") if version == pinned.version else (apt_sha256, "apt's signed package lists")
    )

    if digest != expected:
        path.unlink()

        raise CorpusError(
            f"{path.name}: the SHA-256 must be {expected} ({verified_by}), but is {digest}. The file was removed; "
            "start again."
        )

    return digest, verified_by


def _parse_offer(line: str) -> _Offer:
    # 'http://.../P_1.0%7ex-8_all.deb' P_1.0~x-8_all.deb 21882696 SHA256:25f2...
    match = re.fullmatch(r"'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})", line.strip())

    if match is None:
        raise CorpusError(f"apt-get --print-uris must name file, size and SHA-256, but printed: {line}")

    name, version, _ = match[1].split("_")

    return _Offer(name, version.replace("%3a", ":"), match[1], int(match[2]), match[3])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]

    return lines[-1].strip().rstrip(".") + "." if lines else "no reason given."


@contextmanager
def _download_progress(num_bytes: int) -> Iterator[Callable[[Path], None]]:
    """Show a bar over all downloads; yields the function that is told the file whose size has grown."""
    sizes: dict[Path, int] = {}

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip

    with Progress(*columns, console=STDERR) as bar:
        task = bar.add_task("fetching", total=num_bytes)

        def report(path: Path) -> None:
            if path.exists():
                sizes[path] = path.stat().st_size

                bar.update(task, completed=sum(sizes.values()), description=path.name.split("_")[0])

        yield report

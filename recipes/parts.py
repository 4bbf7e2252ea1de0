"""Parts: independent jobs, such as the members of an array, that make one store together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from recipes.common import CorpusSection

CLAIM_FILE: Final = "completing"
"""A link that leads nowhere: its text names the part that completes the store at the moment."""


@final
@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count``."""

    index: int

    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE: Final = Part(0, 1)


@dataclass(kw_only=True)
class PartedCorpusSection(CorpusSection):
    """A corpus that several jobs can share."""

    part: str | None = None
    """``i/n``: this job makes shards i, i + n, ... of the store, i from 0 to n - 1. Other jobs with the same OUT make
    the others, at the same time or not; the last one completes the store. If ``None``, this job makes all."""

    @override
    def validate(self) -> ValidationResult:
        result = CorpusSection.validate(self)

        if self.part is not None and _parse(self.part) is None:
            result.add_error(f"`part` must be such as 0/4, the first of four, but is '{self.part}'.")

        return result

    @property
    def own_part(self) -> Part:
        """The part of a validated section."""
        return (_parse(self.part) if self.part is not None else None) or WHOLE


def _parse(text: str) -> Part | None:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        return None
    return Part(int(index), int(count))


@contextmanager
def claim_completion(folder: Path, part: Part, is_finished: Callable[[], bool]) -> Iterator[str | None]:
    """Yield None if this part is the one to complete the store, else why it is not.

    Of parts that see all shards at once only one is. A part that fails or is killed before the end of the block keeps
    its claim: started again, it is the one, even if what is there looks finished.

    Args:
        folder: The store's.
        part: Who asks.
        is_finished: Says whether the store is complete already.
    """
    claim = folder / CLAIM_FILE
    try:
        claim.symlink_to(str(part))  # made with its text or refused, on shared file systems, too
        reason = "The store is complete." if is_finished() else None
    except FileExistsError:
        if (other := _read_claim(claim)) != str(part):
            yield f"Part {other} completes the store. Should it have been killed, start it again."
            return
        reason = None
    yield reason
    claim.unlink(missing_ok=True)


def _read_claim(claim: Path) -> str:
    try:
        return str(claim.readlink())
    except FileNotFoundError:  # it has just finished
        return "of another job"

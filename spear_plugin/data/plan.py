"""What a plan is: a sequence of groups that all processes make alike, and that can be entered anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from spear_plugin.data.grouping import Examples


class PlanError(ValueError):
    """Raised when a state does not belong to the corpora; the message is one line with the remedy."""


class PlannedCorpus(Protocol):
    """What a plan must know about a corpus."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of its segments, in samples; at least one."""

    @property
    def weight(self) -> float:
        """Probability, up to a factor, that the next example comes from this corpus."""

    @property
    def shards(self) -> NDArray[np.uint32] | None:
        """Of its segments, see :class:`EndlessOrder`; None where the audio is in files of their own."""


PositionT = TypeVar("PositionT")


class Plan(ABC, Generic[PositionT]):
    """A sequence of groups that can be entered anywhere."""

    @property
    @abstractmethod
    def is_endless(self) -> bool: ...

    @abstractmethod
    def begin(self) -> PositionT:
        """Return the position before the first group."""

    @abstractmethod
    def groups_from(self, position: PositionT) -> Iterator[tuple[PositionT, Examples]]:
        """Yield the groups behind a position, each with the position behind it. Process ``r`` takes ``group[r::R]``."""

    @abstractmethod
    def to_state(self, position: PositionT) -> dict[str, object]:
        """Return a position as what ``torch.save`` can write; the same on all processes."""

    @abstractmethod
    def from_state(self, state: Mapping[str, Any]) -> PositionT:
        """Return the position of a state.

        :raises PlanError: If the corpora or the seed were others.
        """

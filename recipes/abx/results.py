"""Results, a file for each source, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import UnitQuality


@final
@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """ABX errors of a layer, in [0, 1]; 0.5 is chance."""

    layer: int
    """The first one is 1; 0 is an output whose layer is not known."""

    within: float
    """A, B and X are of one speaker."""

    across: float | None
    """X is of another speaker than A and B; None if there is one speaker only."""


@final
@dataclass(frozen=True, kw_only=True)
class SourceResult:
    """What was found for a source."""

    identity: str
    """Of items, frames and settings: a result of another identity is out of date."""

    source: str

    kind: str

    distance: str

    num_items: int

    layers: list[LayerErrors]

    units: UnitQuality | None
    """For units."""

    seconds: float

    @property
    def best(self) -> LayerErrors:
        """The layer with the smallest mean of its errors."""
        return min(self.layers, key=lambda layer: layer.within + (layer.across or 0.0))


@final
class ResultStore:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, source: str, identity: str) -> SourceResult | None:
        """Return a result unless it is missing, damaged, or of another identity."""
        try:
            record: dict[str, Any] = json.loads(self._path(source).read_text(encoding="utf-8"))
            layers = [LayerErrors(**layer) for layer in record.pop("layers")]
            units = record.pop("units")
            result = SourceResult(**record, layers=layers, units=None if units is None else UnitQuality(**units))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return result if result.identity == identity else None

    def save(self, result: SourceResult) -> None:
        """Write a result atomically."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(result.source)) as path:
            path.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")

    def _path(self, source: str) -> Path:
        return self._folder / f"{source}.json"

"""Values in a pipeline's texts, and the combinations of values that a sweep asks for."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from slurm.files import LaunchError

_INNERMOST: Final = re.compile(r"\$\{([^${}]*)\}")
_MAX_LABEL: Final = 160
_MAX_DEPTH: Final = 30


@final
@dataclass(frozen=True)
class Cell:
    """One setting of a sweep, to be repeated."""

    name: str

    values: dict[str, Any]


@final
@dataclass(frozen=True)
class Sweep:
    """Which cells there are, and what they are repeated over.

    ``cells`` maps names to the values that differ from the pipeline's; a value that is a list stands for one cell for
    each of its entries. ``repeat`` has lists of values that count as repetitions, such as seeds.
    """

    cells: list[Cell] = field(default_factory=lambda: [Cell("all", {})])

    repeat: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def variables(self) -> set[str]:
        """Names of all values that differ somewhere."""
        return {name for cell in self.cells for name in cell.values} | set(self.repeat)

    def repetitions(self, cell: Cell) -> list[dict[str, Any]]:
        """Return the values of each repetition of a cell."""
        return [
            cell.values | dict(zip(self.repeat, values, strict=True))
            for values in itertools.product(*self.repeat.values())
        ]


def read_sweep(section: Any, source: str) -> Sweep:
    """Return the sweep of a pipeline's section ``sweep``.

    Raises:
        LaunchError: The section has another form; the message begins with `source`.
    """
    if section is None:
        return Sweep()
    if not isinstance(section, dict) or not set(section) <= {"cells", "repeat"}:
        raise LaunchError(f"{source}: `sweep` must have `cells` and `repeat`, and nothing else.")
    cells, repeat = section.get("cells") or {"all": {}}, section.get("repeat") or {}
    for name, values in repeat.items():
        if not isinstance(values, list) or not values:
            raise LaunchError(f"{source}: `sweep.repeat.{name}` must be a list of values, but is {values!r}.")
    expanded = [cell for name, values in cells.items() for cell in _expand(str(name), values or {}, source)]
    return Sweep(expanded, dict(repeat))


def _expand(name: str, values: Any, source: str) -> list[Cell]:
    if not isinstance(values, dict):
        raise LaunchError(f"{source}: `sweep.cells.{name}` must map names to values, but is {values!r}.")
    alternatives = [value if isinstance(value, list) else [value] for value in values.values()]
    varied = [key for key, value in values.items() if isinstance(value, list)]
    cells = []
    for combination in itertools.product(*alternatives):
        chosen = dict(zip(values, combination, strict=True))
        suffix = ",".join(f"{key}={chosen[key]}" for key in varied)
        cells.append(Cell(suffix if varied == [name] else f"{name} {suffix}".strip(), chosen))
    return cells


@final
class Substitution:
    """Replaces ``${name}`` in texts, innermost first, and remembers which names were asked for.

    Args:
        values: What names stand for. Values may contain ``${name}`` in their turn.
        source: Begins the messages of errors.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source
        self.used: set[str] = set()

    def __call__(self, text: str) -> str:
        """Return a text with all values in their places.

        Raises:
            LaunchError: A name is unknown, or stands for itself.
        """
        for _ in range(_MAX_DEPTH):
            if _INNERMOST.search(text) is None:
                return text
            text = _INNERMOST.sub(self._look_up, text)
        raise LaunchError(f"{self._source}: a value contains itself: {text[:80]}.")

    def _look_up(self, match: re.Match[str]) -> str:
        name = match[1]
        if name not in self._values:
            known = ", ".join(sorted(self._values))
            raise LaunchError(f"{self._source}: there is no value `{name}` here, only {known}.")
        self.used.add(name)
        return format_value(self._values[name])


def format_value(value: Any) -> str:
    """Return a value as it stands in YAML on one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return str(value)


def label_of(values: Mapping[str, Any]) -> str:
    """Return the name of a folder for a combination of values: readable, and different for different ones."""
    # No commas: paths stand in lists of YAML on command lines. Nothing that a URI escapes: fairseq2 0.8.1 makes URIs
    # of the paths in cards, and does not translate them back.
    plain = "__".join(f"{name}-{format_value(values[name])}" for name in sorted(values))
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain)
    if label == plain and len(label) <= _MAX_LABEL:
        return label
    return f"{label[:_MAX_LABEL]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"

"""A sweep's tables: each cell's metrics, and their paired differences to the first cell, as mean and 95 % interval over
its repetitions.

    table:
      - {name: valid loss, stage: pretraining, file: metrics/valid.jsonl, key: Loss}
      - {name: events, stage: probes, file: probe.json, key: results/task=events/source=spear/accuracy}

Of a .jsonl file the last line counts. A key's parts go down into mappings; ``name=value`` picks from a list.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from rich.console import Group
from rich.table import Table

from slurm.files import LaunchError, write_atomically
from slurm.plan import Plan, PlannedStage

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond, the normal distribution's is close.
_T_QUANTILES: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_METRIC_KEYS: Final = {"name", "stage", "file", "key"}


@final
@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions."""

    mean: float

    half_width: float | None
    """Half the 95 % interval of the mean (Student's t); None for a single value."""

    count: int

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.half_width:.2g}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of the values with its interval, or None if there are none."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    degrees = len(values) - 1
    quantile = _T_QUANTILES[degrees - 1] if degrees <= len(_T_QUANTILES) else 1.96
    return Estimate(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values)), len(values))


@final
@dataclass(frozen=True)
class Result:
    """A metric of a cell."""

    value: Estimate | None
    """None: there are no results yet."""

    difference: Estimate | None
    """To the sweep's first cell, over the repetitions that both have; None for that cell itself."""


def collect(plan: Plan) -> dict[str, dict[str, Result]]:
    """Return each cell's metrics from the results that are there.

    Raises:
        LaunchError: A metric's description, or its key in a file, is wrong.
    """
    for metric in plan.metrics:
        if not isinstance(metric, dict) or set(metric) != _METRIC_KEYS:
            raise LaunchError(f"`table`: a metric has {', '.join(sorted(_METRIC_KEYS))}, but one is {metric!r}.")
    results: dict[str, dict[str, Result]] = {cell: {} for cell in plan.cells}
    first = next(iter(plan.cells))
    for metric in plan.metrics:
        values = {cell: [_read_metric(metric, run) for run in runs] for cell, runs in plan.cells.items()}
        for cell, row in values.items():
            pairs = zip(row, values[first], strict=True) if cell != first else ()
            results[cell][metric["name"]] = Result(
                value=estimate([value for value in row if value is not None]),
                difference=estimate([a - b for a, b in pairs if a is not None and b is not None]),
            )
    return results


def write_tables(plan: Plan, results: Mapping[str, Mapping[str, Result]]) -> Group:
    """Write ``OUT/table.tsv`` and ``OUT/table.md``, and return the tables for a terminal."""
    names = [metric["name"] for metric in plan.metrics]
    values = {cell: [row[name].value for name in names] for cell, row in results.items()}
    differences = {cell: [row[name].difference for name in names] for cell, row in results.items()}
    first = next(iter(results))
    del differences[first]

    heads = ["cell"]
    for name in names:
        heads += [name, f"{name}: half of 95 % interval", f"{name}: runs"]
        heads += [f"{name}: difference to {first}", f"{name}: half of its 95 % interval", f"{name}: pairs"]
    tsv = ["\t".join(heads)]
    for cell, row in results.items():
        estimates = [e for name in names for e in (row[name].value, row[name].difference)]
        tsv.append("\t".join([cell, *(part for e in estimates for part in _tsv_parts(e))]))
    write_atomically(plan.out / "table.tsv", "\n".join(tsv) + "\n")

    titles = ("mean ± half of the 95 % interval", f"difference to {first}, paired, ± half of the 95 % interval")
    shown = [(titles[0], values), *([(titles[1], differences)] if differences else [])]
    text = "\n\n".join(f"{title}\n\n{_markdown(names, rows)}" for title, rows in shown)
    write_atomically(plan.out / "table.md", text + "\n")
    return Group(*(_terminal_table(title, names, rows) for title, rows in shown))


_Rows = Mapping[str, Sequence[Estimate | None]]


def _markdown(names: Sequence[str], rows: _Rows) -> str:
    lines = ["| " + " | ".join(["cell", *names]) + " |", "|---" * (len(names) + 1) + "|"]
    for cell, estimates in rows.items():
        lines.append("| " + " | ".join([cell, *(str(e or "") for e in estimates)]) + " |")
    return "\n".join(lines)


def _terminal_table(title: str, names: Sequence[str], rows: _Rows) -> Table:
    table = Table(title=title)
    for head in ("cell", *names):
        table.add_column(head)
    for cell, estimates in rows.items():
        table.add_row(cell, *(str(e or "") for e in estimates))
    return table


def _tsv_parts(value: Estimate | None) -> tuple[str, str, str]:
    if value is None:
        return ("", "", "0")
    return (repr(value.mean), "" if value.half_width is None else repr(value.half_width), str(value.count))


def _read_metric(metric: Mapping[str, str], run: Mapping[str, PlannedStage]) -> float | None:
    if metric["stage"] not in run:
        raise LaunchError(f"`table`: there is no stage `{metric['stage']}`, only {', '.join(run)}.")
    path = run[metric["stage"]].folder / metric["file"]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    content = json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" else text)
    value = _pick(content, metric["key"], path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LaunchError(f"{path}: `{metric['key']}` must be a number, but is {value!r}.")
    return float(value)


def _pick(content: Any, key: str, path: Path) -> Any:
    for part in key.split("/"):
        name, is_filter, value = part.partition("=")
        if isinstance(content, list) and is_filter:
            content = [item for item in content if isinstance(item, dict) and str(item.get(name)) == value]
            continue
        if isinstance(content, list) and len(content) == 1:
            content = content[0]
        if not isinstance(content, dict) or part not in content:
            raise LaunchError(f"{path}: has no `{key}` (looked for `{part}`).")
        content = content[part]
    return content

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from recipes.probe.results import Difference, ProbeResult
from spear_plugin.data.files import atomic_file

_TSV_COLUMNS: Final = (
    "task",
    "source",
    "kind",
    "task_kind",
    "mode",
    "layer",
    "metric",
    "value",
    "low",
    "high",
    "majority",
    "num_classes",
    "num_fitted",
    "num_test",
    "num_files",
    "extraction_seconds",
    "fit_seconds",
)


def write_report(folder: Path, results: Sequence[ProbeResult], differences: Sequence[Difference]) -> None:
    """Write ``probe.json``, ``probe.tsv`` and ``probe.png``."""
    record = {
        "results": [_without_details(result) for result in results],
        "differences": [asdict(difference) for difference in differences],
    }

    with atomic_file(folder / "probe.json") as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")

    lines = ["\t".join(_TSV_COLUMNS)]

    lines += ["\t".join(_format(getattr(result, column)) for column in _TSV_COLUMNS) for result in results]

    with atomic_file(folder / "probe.tsv") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    with atomic_file(folder / "probe.png") as path:
        _draw(results).savefig(path, format="png", dpi=130)


def print_report(console: Console, results: Sequence[ProbeResult], differences: Sequence[Difference]) -> None:
    """Print the values as a table of sources and tasks, and the differences below it."""
    tasks = list(dict.fromkeys(result.task for result in results))

    metrics = {result.task: result.metric.replace("_", " ") for result in results}

    errors = {result.task for result in results if result.is_error}

    table = Table(title="Probes: test part in % [95 % interval], layer")

    table.add_column("features")

    for task in tasks:
        table.add_column(f"{task}\n{metrics[task]}{', less is better' if task in errors else ''}", justify="right")

    for source in dict.fromkeys(result.source for result in results):
        cells = {result.task: _cell(result) for result in results if result.source == source}

        table.add_row(source, *(cells.get(task, "") for task in tasks))

    majority = {result.task: f"{100 * result.majority:.1f}" for result in results}

    table.add_row("without features", *(majority[task] for task in tasks), style="dim")

    console.print(table)

    for d in differences:
        console.print(
            f"{d.task}: {d.source} - {d.reference} = {100 * d.difference:+.1f} "
            f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}] points",
            highlight=False,
            markup=False,
        )


def _without_details(result: ProbeResult) -> dict[str, Any]:
    """Return what reports tell, the value also under its metric's name."""
    record = {key: value for key, value in vars(result).items() if key not in ("identity", "statistic")}

    return record | {result.metric: result.value, "layers": [asdict(layer) for layer in result.layers]}


def _format(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _cell(result: ProbeResult) -> str:
    layer = "sum" if result.layer == 0 else f"{result.layer}"

    return f"{100 * result.value:.1f} \\[{100 * result.low:.1f}, {100 * result.high:.1f}] {layer}"


def _draw(results: Sequence[ProbeResult]) -> Figure:
    """Draw the test values of each layer, one panel per task; a star marks the layer chosen on validation."""
    tasks = list(dict.fromkeys(result.task for result in results))

    figure = Figure(figsize=(4.5 * len(tasks), 3.6), layout="constrained")

    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        shown = [result for result in results if result.task == task]

        for index, result in enumerate(shown):
            _draw_source(axes, result, f"C{index}")

        axes.axhline(shown[0].majority, color="grey", linestyle=":", label="without features")

        axes.set(title=task, xlabel="layer", ylabel=shown[0].metric.replace("_", " "))

        axes.legend(fontsize="small")

    return figure


def _draw_source(axes: Axes, result: ProbeResult, color: str) -> None:
    if len(result.layers) < 2:
        axes.axhline(result.value, color=color, linestyle="--", label=result.source)

        return

    numbers = [layer.layer for layer in result.layers]

    axes.plot(numbers, [layer.accuracy for layer in result.layers], color=color, label=result.source)

    axes.fill_between(
        numbers, [layer.low for layer in result.layers], [layer.high for layer in result.layers], color=color, alpha=0.2
    )

    axes.plot([result.layer], [result.layers[result.layer - 1].accuracy], marker="*", markersize=12, color=color)

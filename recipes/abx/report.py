from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from recipes.abx.results import LayerErrors, SourceResult
from spear_plugin.data.files import atomic_file
from spear_plugin.evaluation import UnitQuality

_MEASURES: Final = tuple(field.name for field in fields(UnitQuality))

_COLUMNS: Final = ("source", "kind", "distance", "layer", "within", "across", *_MEASURES, "num_items", "seconds")

_TITLES: Final = {"within": "within speakers", "across": "across speakers"}


def write_report(folder: Path, results: Sequence[SourceResult]) -> None:
    """Write ``abx.json``, ``abx.tsv`` and ``abx.png``."""
    with atomic_file(folder / "abx.json") as path:
        path.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    lines = ["\t".join(_COLUMNS), *("\t".join(_record(result, layer)) for result, layer in _layers_of(results))]
    with atomic_file(folder / "abx.tsv") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with atomic_file(folder / "abx.png") as path:
        _draw(results).savefig(path, format="png", dpi=130)


def print_report(console: Console, results: Sequence[SourceResult]) -> None:
    """Print the errors of all layers, the best one of each source marked, and below them what is known of units."""
    table = _create_table("ABX errors in %", "features", "layer", "within", "across")
    for result, layer in _layers_of(results):
        mark = "*" if layer == result.best and len(result.layers) > 1 else ""
        table.add_row(result.source, f"{layer.layer or '-'}{mark}", _percent(layer.within), _percent(layer.across))
    console.print(table)

    columns = ("PNMI", "phone purity", "cluster purity", "perplexity", "used", "bit/s")
    table = _create_table("Units and phones", "units", *columns)
    for result in results:
        if (units := result.units) is not None:
            shares = [f"{share:.3f}" for share in (units.pnmi, units.phone_purity, units.cluster_purity)]
            table.add_row(
                result.source, *shares, f"{units.perplexity:.1f}", str(units.num_active), f"{units.bitrate:.1f}"
            )
    if table.row_count > 0:
        console.print(table)


def _create_table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _layers_of(results: Sequence[SourceResult]) -> Iterator[tuple[SourceResult, LayerErrors]]:
    for result in results:
        for layer in result.layers:
            yield result, layer


def _record(result: SourceResult, layer: LayerErrors) -> list[str]:
    units = {} if result.units is None else asdict(result.units)
    values = asdict(result) | units | asdict(layer)
    return [_format(values.get(column)) for column in _COLUMNS]


def _format(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2f}"


def _draw(results: Sequence[SourceResult]) -> Figure:
    """Draw the errors by layer, a panel for those within and one for those across speakers."""
    panels = [name for name in _TITLES if any(getattr(r.layers[0], name) is not None for r in results)]
    figure = Figure(figsize=(5.0 * len(panels), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, result in enumerate(results):
            _draw_source(axes, result, name, f"C{index}")
        axes.set(title=_TITLES[name], xlabel="layer", ylabel="ABX error in %")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    return figure


def _draw_source(axes: Axes, result: SourceResult, name: str, color: str) -> None:
    errors = [100 * getattr(layer, name) for layer in result.layers]
    if len(errors) == 1:
        style = "--" if result.units is None else ":"
        axes.axhline(errors[0], color=color, linestyle=style, label=result.source)
        return
    numbers = [layer.layer for layer in result.layers]
    axes.plot(numbers, errors, color=color, marker=".", label=result.source)
    best = numbers.index(result.best.layer)
    axes.plot([numbers[best]], [errors[best]], marker="*", markersize=12, color=color)

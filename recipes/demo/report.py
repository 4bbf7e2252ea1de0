"""Collects what the demo's commands wrote and makes one self-contained page and a summary for the terminal."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, final

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from recipes.demo.plan import DemoFolders
from recipes.figures import draw_bars, draw_curves, to_svg
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import read_manifest

_TEMPLATE = Path(__file__).with_name("report.html")


@final
@dataclass(frozen=True)
class Claim:
    """Whether the model beats a reference on a task by more than the interval of their difference."""

    task: str
    source: str
    reference: str
    difference: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"{self.task}: {self.source} - {self.reference} = {100 * self.difference:+.1f} points "
            f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        )


@final
@dataclass(frozen=True, kw_only=True)
class DemoResults:
    """Everything that the report shows, as the recipes wrote it."""

    train: list[dict[str, Any]]
    """Records of metrics/train.jsonl; after a resume the last of a step counts."""

    valid: list[dict[str, Any]]

    quantizers: dict[str, dict[str, Any]]
    """Report of `recipes.mvq.train` for each stream."""

    probes: list[dict[str, Any]]

    differences: list[dict[str, Any]]

    def claims(self, source: str, tasks: Sequence[str], references: Sequence[str]) -> list[Claim]:
        """Return how `source` compares with each reference on each task."""
        return [
            Claim(**{key: record[key] for key in Claim.__dataclass_fields__})
            for record in self.differences
            if record["task"] in tasks and record["source"] == source and record["reference"] in references
        ]


def read_results(folders: DemoFolders) -> DemoResults:
    """Return what the finished stages wrote."""
    probes = json.loads((folders.probes / "probe.json").read_text())
    return DemoResults(
        train=read_metrics(folders.pretraining / "metrics" / "train.jsonl"),
        valid=read_metrics(folders.pretraining / "metrics" / "valid.jsonl"),
        quantizers={
            f"{stream} teacher": json.loads((folders.quantizer(stream) / "report.json").read_text())
            for stream in ("speech", "audio")
        },
        probes=probes["results"],
        differences=probes["differences"],
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file by step; a step written twice, after a resume, counts once."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        by_step[int(record["Step"])] = record
    return [by_step[step] for step in sorted(by_step)]


def describe_corpora(folders: DemoFolders) -> list[tuple[str, ...]]:
    """Return a table of the manifests that pre-training reads."""
    rows: list[tuple[str, ...]] = [("manifest", "recordings", "minutes")]
    for domain in ("speech", "audio"):
        for split in ("train", "valid"):
            manifest = read_manifest(folders.corpora / domain / f"{split}.tsv")
            minutes = sum(row.duration for row in manifest) / 60
            rows.append((f"{domain}, {split}", str(len(manifest)), f"{minutes:.1f}"))
    return rows


def print_probes(console: Console, results: DemoResults) -> None:
    """Print the table of probes."""
    heading, *rows = _probe_rows(results)
    table = Table(title="Linear probes: test accuracy in % [95 % interval]")
    for cell in heading:
        table.add_column(cell)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_report(
    path: Path,
    results: DemoResults,
    *,
    claims: Sequence[Claim],
    example: Figure,
    data_rows: Sequence[Sequence[str]],
    seconds: Mapping[str, float],
    load_lines: str,
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        results: The numbers.
        claims: The comparisons shown first.
        example: The picture of a masked prediction.
        data_rows: A table of the corpora, its heading first.
        seconds: Time of each stage by its title.
        load_lines: The Python lines that load the model.
    """
    page = Template(_TEMPLATE.read_text()).substitute(
        claims="".join(f"<li class={'yes' if c.holds else 'no'}>{html.escape(str(c))}</li>" for c in claims),
        loss=to_svg(draw_curves(_curves(results, "loss"), x_label="step", y_label="cross-entropy, nats a code")),
        accuracy=to_svg(draw_curves(_curves(results, "accuracy"), x_label="step", y_label="accuracy on masked frames")),
        quantizers=to_svg(
            draw_curves(
                _reconstruction_curves(results), x_label="codebooks (1 byte a frame each)", y_label="relative error"
            )
        ),
        example=to_svg(example),
        probes="".join(_probe_figure(results, task) for task in _tasks(results)),
        layers="".join(_layer_figure(results, task) for task in _tasks(results)),
        probe_table=_table(_probe_rows(results)),
        data_table=_table(data_rows),
        time_table=_table([("stage", "seconds"), *((name, f"{value:.0f}") for name, value in seconds.items())]),
        load_lines=html.escape(load_lines),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page)


def _curves(results: DemoResults, kind: str) -> dict[str, tuple[list[float], list[float]]]:
    suffix = {"loss": " Loss", "accuracy": " Masked Accuracy"}[kind]
    curves = {}
    for split, records in (("training", results.train), ("validation", results.valid)):
        for key in sorted({key for record in records for key in record if key.endswith(suffix)}):
            points = [(record["Step"], record[key]) for record in records if key in record]
            steps, values = zip(*points, strict=True)
            curves[f"{key.removesuffix(suffix).lower()}, {split}"] = (list(steps), list(values))
    return curves


def _reconstruction_curves(results: DemoResults) -> dict[str, tuple[list[float], list[float]]]:
    curves = {}
    for name, report in results.quantizers.items():
        points = sorted((int(n), float(error)) for n, error in report["error_by_num_codebooks"].items())
        curves[name] = ([float(n) for n, _ in points], [error for _, error in points])
    return curves


def _tasks(results: DemoResults) -> list[str]:
    return list(dict.fromkeys(record["task"] for record in results.probes))


def _probe_figure(results: DemoResults, task: str) -> str:
    rows = [record for record in results.probes if record["task"] == task]
    figure = draw_bars(
        [row["source"] for row in rows],
        [row["accuracy"] for row in rows],
        [(row["low"], row["high"]) for row in rows],
        chance=rows[0]["majority"],
        title=f"{task}: {rows[0]['num_classes']} classes, {rows[0]['num_test']} test items",
    )
    return to_svg(figure)


def _layer_figure(results: DemoResults, task: str) -> str:
    curves = {
        row["source"]: (list(range(1, len(row["layer_weights"]) + 1)), row["layer_weights"])
        for row in results.probes
        if row["task"] == task and row["layer_weights"]
    }
    return to_svg(draw_curves(curves, x_label="layer", y_label=f"{task}: weight in the sum"))


def _probe_rows(results: DemoResults) -> list[tuple[str, ...]]:
    tasks = _tasks(results)
    cells = {
        (record["source"], record["task"]): f"{100 * record['accuracy']:.1f} "
        f"[{100 * record['low']:.1f}, {100 * record['high']:.1f}]"
        for record in results.probes
    }
    sources = dict.fromkeys(record["source"] for record in results.probes)
    return [("features", *tasks), *((source, *(cells.get((source, task), "") for task in tasks)) for source in sources)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(row, "td") for row in rows[1:]) + "</table>"

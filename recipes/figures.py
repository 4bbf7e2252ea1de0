"""Pictures of trainings, codes and features, and the two ways to keep them: within a page, or as a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from spear_plugin.data.files import atomic_file

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "spear",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}

Curve = tuple[Sequence[float], Sequence[float]]


def draw_curves(curves: Mapping[str, Curve], *, x_label: str, y_label: str) -> Figure:
    """Draw named (x, y) curves in one pair of axes."""
    figure, axes = _new_figure(4.6, 3.0)
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, marker="o" if len(x) < 12 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend()
    return figure


def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    chance: float,
    title: str,
) -> Figure:
    """Draw horizontal bars with their intervals and a line at the accuracy of always saying the commonest label."""
    figure, axes = _new_figure(4.6, 0.8 + 0.32 * len(names))
    positions = np.arange(len(names))[::-1]
    errors = np.array([[v - low, high - v] for v, (low, high) in zip(values, intervals, strict=True)]).T
    axes.barh(positions, values, xerr=np.maximum(errors, 0.0), color="#7aa6c2", ecolor="#333333", capsize=2)
    axes.axvline(chance, color="#b04040", linestyle=":")
    axes.set_yticks(positions, names)
    axes.set_xlim(0, 1)
    axes.set_title(title, loc="left")
    axes.set_xlabel("accuracy (dotted: most frequent class)")
    axes.grid(axis="y", visible=False)
    return figure


def draw_masked_prediction(
    fbank: NDArray[np.float32],
    mask: NDArray[np.bool_],
    codes: NDArray[np.int64],
    predicted: NDArray[np.int64],
    *,
    fbank_hz: float = 100.0,
    code_hz: float = 50.0,
) -> Figure:
    """Draw a log-mel spectrogram with its mask above the codes of the teacher and those that the student predicts.

    Args:
        fbank: (F, M) log-mel energies.
        mask: (F,) frames that the student did not see.
        codes: (T, K) the teacher's codes.
        predicted: (T, K) the student's most probable codes; wrong ones are drawn in grey.
        fbank_hz: Frames a second of `fbank` and `mask`.
        code_hz: Frames a second of the codes.
    """
    figure = Figure(figsize=(9.4, 5.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    seconds = len(fbank) / fbank_hz
    top.imshow(fbank.T, origin="lower", aspect="auto", extent=(0, seconds, 0, fbank.shape[1]), cmap="magma")
    for start, end in _runs(mask):
        top.axvspan(start / fbank_hz, end / fbank_hz, color="white", alpha=0.75, linewidth=0)
    top.set_ylabel("mel bin (white: masked)")
    num_frames, num_codebooks = codes.shape
    extent = (0.0, num_frames / code_hz, 0.0, float(num_codebooks))
    middle.imshow(codes.T, origin="lower", aspect="auto", extent=extent, cmap="turbo", interpolation="nearest")
    middle.set_ylabel("teacher's\ncodebooks")
    shown = np.ma.masked_where(predicted != codes, predicted)
    bottom.set_facecolor("#d8d8d8")
    bottom.imshow(shown.T, origin="lower", aspect="auto", extent=extent, cmap="turbo", interpolation="nearest")
    for start, end in _runs(mask):
        bottom.axvspan(start / fbank_hz, end / fbank_hz, ymin=0.96, color="black", linewidth=0)
    bottom.set_ylabel("predicted\n(grey: wrong)")
    bottom.set_xlabel("seconds (black bar: masked)")
    for axes in (middle, bottom):
        axes.set_yticks(np.arange(num_codebooks) + 0.5, [str(number) for number in range(1, num_codebooks + 1)])
    for axes in (top, middle, bottom):
        axes.grid(visible=False)
    return figure


def draw_points(groups: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Figure:
    """Draw points in the plane, a panel for each of some sources, a colour for each of their labels.

    Args:
        groups: By source and label, the points (P, 2). All sources have the same labels.
    """
    figure = Figure(figsize=(3.6 * len(groups), 4.0), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (source, labels) in zip(panels, groups.items(), strict=True):
        for label, points in labels.items():
            axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.6, linewidths=0, label=label)
        axes.set(title=source, xticks=[], yticks=[])
        axes.grid(visible=False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), markerscale=4)
    return figure


def draw_usage(stores: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Draw how often the entries of codebooks occur, the commonest first, a panel for each of some stores.

    Args:
        stores: By name, the counts (K, V) of the entries.
    """
    figure = Figure(figsize=(4.6 * len(stores), 3.2), layout="constrained")
    for axes, (name, counts) in zip(figure.subplots(1, len(stores), squeeze=False)[0], stores.items(), strict=True):
        shares = -np.sort(-counts / counts.sum(axis=1, keepdims=True), axis=1)
        for number, share in enumerate(shares, start=1):
            axes.plot(np.arange(1, len(share) + 1), share, label=f"codebook {number}")
        axes.axhline(1 / counts.shape[1], color="grey", linestyle=":", label="all alike")
        axes.set(title=name, xlabel="entry, the commonest first", ylabel="share of the frames", yscale="log")
        axes.legend(fontsize="small")
    return figure


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def to_svg(figure: Figure) -> str:
    """Return a figure as an element of a page, which then needs no other file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    # Only the <svg> element: an XML declaration has no place inside a page.
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def save_png(path: Path, figure: Figure, *, dots_per_inch: int = 110) -> None:
    """Write a figure to a file, atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dots_per_inch)

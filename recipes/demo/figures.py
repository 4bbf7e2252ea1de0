"""The report's pictures, each returned as an inline SVG so that the page needs no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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


def draw_curves(curves: Mapping[str, Curve], *, x_label: str, y_label: str) -> str:
    """Draw named (x, y) curves in one pair of axes."""
    figure, axes = _new_figure(4.6, 3.0)
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, marker="o" if len(x) < 12 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend()
    return _to_svg(figure)


def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    chance: float,
    title: str,
) -> str:
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
    return _to_svg(figure)


def draw_masked_prediction(
    fbank: NDArray[np.float32],
    mask: NDArray[np.bool_],
    codes: NDArray[np.int64],
    predicted: NDArray[np.int64],
    *,
    fbank_hz: float = 100.0,
    code_hz: float = 50.0,
) -> str:
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
    return _to_svg(figure)


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    # Only the <svg> element: an XML declaration has no place inside a page.
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)

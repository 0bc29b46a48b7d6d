"""A study's plots: score against parameters, learning curves, and the spread over seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from lora2.glue.tasks import TASKS
from lora2.report.render import METRIC_NAMES, TASK_NAMES
from lora2.report.study_data import Results, majority

# Okabe and Ito's colours by method, told apart without colour vision too; the smaller of a
# method's two rows is drawn hollow and dashed.
COLOURS = {"full": "#000000", "bitfit": "#777777", "lora": "#0072b2", "adalora": "#e69f00",
           "sora": "#56b4e9", "lora2": "#d55e00", "lora_xs": "#009e73"}  # fmt: skip
SMALL = ("-r1", "-r2", "-k1")
FONT = {"svg.hashsalt": "lora2", "font.family": "DejaVu Sans", "font.size": 9}
NEAREST = 8  # points from a mark to its label
DISTANCES = (NEAREST, 14, 22, 32, 44, 58, 74, 92)
# Degrees; not straight up or down, where a line to the label would lengthen the error bar.
ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120)
LAST = (DISTANCES[-1], ANGLES[-1])


def _style(results: Results, row: str) -> dict[str, object]:
    own = results.runs.loc[results.runs["row"] == row, "method"].dropna()
    colour = COLOURS[own.iloc[0]] if len(own) else "#999999"
    small = row.endswith(SMALL)
    return {"color": colour, "markerfacecolor": "white" if small else colour,
            "linestyle": "--" if small else "-"}  # fmt: skip


def _panels(results: Results, height: float) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A figure with a panel for each task of Table 1, at most two side by side."""
    tasks = results.tasks("1")
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(6.2 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)  # labels are placed by their size in pixels
    panes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in panes[len(tasks) :]:
        axes.set_visible(False)
    for task, axes in zip(tasks, panes, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{TASK_NAMES[task]} ({_metrics(task)})", fontsize=10, loc="left")
    return figure, list(zip(tasks, panes, strict=False))


def _metrics(task: str) -> str:
    return "/".join(METRIC_NAMES.get(one, one) for one in TASKS[task].score_metrics)


def parameters(results: Results) -> Figure:
    """Mean best score, with its standard deviation, against the adapter's parameters."""
    figure, panels = _panels(results, 4.4)
    for task, axes in panels:
        for row in results.rows("1"):
            own = results.cell("1", row, task)
            if own.empty:
                continue
            scores = own["score_best"].astype(float)
            place = float(own["params_adapter"].mean()), float(scores.mean())
            error = float(scores.std()) if len(scores) > 1 else 0.0
            axes.errorbar(*place, yerr=error, fmt="o", markersize=6, elinewidth=1, capsize=0,
                          **_style(results, row))  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("trainable parameters of the adapter (the head not counted)")
        axes.set_ylabel("best score, percent points")
        axes.margins(x=0.28, y=0.12)
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the labels below must not move the panels they are in
    for task, axes in panels:
        _place(axes, _points(results, task))
    return figure


def _points(results: Results, task: str) -> list[tuple[tuple[float, float, float], str, str]]:
    """Place and deviation of each row's mean, its label and its colour."""
    found = []
    for row, label in results.rows("1").items():
        own = results.cell("1", row, task)
        if len(own):
            scores = own["score_best"].astype(float)
            error = float(scores.std()) if len(scores) > 1 else 0.0
            place = float(own["params_adapter"].mean()), float(scores.mean()), error
            found.append((place, _short(label), str(_style(results, row)["color"])))
    return found


def _short(label: str) -> str:
    return label.removesuffix(" (ours, not in the paper)")


def _place(axes: Axes, points: Sequence[tuple[tuple[float, float, float], str, str]]) -> None:
    """Label each point at the nearest place that covers no mark, no bar and no other label."""
    taken = [_bar(axes, *place) for place, _, _ in points]
    for (x, y, _), label, colour in points:
        for distance, angle in itertools.product(DISTANCES, ANGLES):
            made = _label(axes, (x, y), label, colour, distance, math.radians(angle))
            made.update_positions(axes.figure.canvas.get_renderer())
            box = Text.get_window_extent(made)  # without its line, which ends at its own mark
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if (inside and not box.count_overlaps(taken)) or (distance, angle) == LAST:
                taken.append(box)
                break
            made.remove()


def _bar(axes: Axes, x: float, y: float, error: float) -> Bbox:
    """The pixels of a mark and its error bar."""
    (left, low), (_, high) = axes.transData.transform([(x, y - error), (x, y + error)])
    return Bbox.from_extents(left - 6, low - 6, left + 6, high + 6)


def _label(
    axes: Axes, place: tuple[float, float], label: str, colour: str, distance: float, angle: float
) -> Annotation:
    across, up = math.cos(angle), math.sin(angle)
    side = "left" if across > 0.1 else "right" if across < -0.1 else "center"
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4,
            "relpos": ({"left": 0, "right": 1, "center": 0.5}[side], 0.5)}  # fmt: skip
    return axes.annotate(
        label, place, (distance * across, distance * up), textcoords="offset points", ha=side,
        va="center", fontsize=8, color="0.15", arrowprops=line if distance > NEAREST else None,
    )  # fmt: skip


def curves(results: Results) -> Figure:
    """Mean score over seeds at each evaluation, a line a row, named at its end."""
    figure, panels = _panels(results, 4.4)
    runs = results.runs.loc[results.runs["table"] == "1", ["run", "row", "task"]]
    frame = results.curves[["run", "step", "score"]].merge(runs, on="run")
    for task, axes in panels:
        ends = []
        for row, label in results.rows("1").items():
            own = frame.loc[(frame["task"] == task) & (frame["row"] == row)]
            if own.empty:
                continue
            mean = own.groupby("step")["score"].mean()
            axes.plot(mean.index, mean.values, marker="o", markersize=4, linewidth=1.4,
                      **_style(results, row))  # fmt: skip
            ends.append((float(mean.iloc[-1]), float(mean.index[-1]), _short(label), row))
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel("score, percent points, mean over seeds")
        axes.set_xticks(sorted(set(frame.loc[frame["task"] == task, "step"])))
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.margins(y=0.08)
        _name_ends(axes, results, ends)
    return figure


def _name_ends(axes: Axes, results: Results, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names right of the panel, as near to the height of their line's end as they fit."""
    if not ends:
        return
    low, high = axes.get_ylim()
    ordered = sorted(ends)
    heights = spread([end[0] for end in ordered], 0.048 * (high - low), low, high)
    last = max(end[1] for end in ordered)
    first = axes.get_xlim()[0]
    for (value, step, label, row), height in zip(ordered, heights, strict=True):
        colour = _style(results, row)["color"]
        axes.annotate(
            label, (step, value), (last + 0.07 * (last - first), height), fontsize=8,
            color="0.15", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1,
                        "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending ``values`` moved as little as keeps them ``gap`` apart, and within low and high."""
    steps = gap * np.arange(len(values))
    # Gaps taken off, what is left must only not fall: least squares under that order.
    placed = isotonic_regression(np.asarray(values) - steps).x
    return (np.clip(placed, low, max(low, high - steps[-1])) + steps).tolist()


def seeds(results: Results) -> Figure:
    """A dot a seed: best score filled, last score hollow, with the mean of the best."""
    rows = results.rows("1")
    figure, panels = _panels(results, 0.36 * len(rows) + 1.2)
    for task, axes in panels:
        for height, row in enumerate(reversed(rows)):
            own = results.cell("1", row, task)
            colour = _style(results, row)["color"]
            best, last = own["score_best"].astype(float), own["score_last"].astype(float)
            offsets = np.linspace(-0.16, 0.16, len(own)) if len(own) > 1 else np.zeros(len(own))
            axes.plot(last, height + offsets, "o", markersize=5, markerfacecolor="none",
                      markeredgecolor=colour, alpha=0.8)  # fmt: skip
            axes.plot(best, height + offsets, "o", markersize=5, color=colour)
            if len(best):
                axes.plot([best.mean()] * 2, [height - 0.34, height + 0.34], color=colour)
        axes.set_yticks(range(len(rows)), [_short(label) for label in reversed(rows.values())])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("score, percent points; filled best, hollow last, bar mean of the best")
        axes.grid(axis="x", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        left, right = axes.get_xlim()
        constant = majority(task)
        if constant is not None and constant > left - (right - left) / 2:  # else far from all dots
            axes.axvline(constant, color="0.45", linewidth=0.9, linestyle=":", zorder=0)
            axes.text(constant, len(rows) - 0.45, " majority class", fontsize=8, color="0.35",
                      va="top")  # fmt: skip
    return figure


FIGURES: Mapping[str, Callable[[Results], Figure]] = {
    "study_parameters": parameters,
    "study_curves": curves,
    "study_seeds": seeds,
}


def write(results: Results, folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG into ``folder``; the same numbers give the same bytes."""
    paths = []
    with matplotlib.rc_context(FONT):
        for name, draw in FIGURES.items():
            figure = draw(results)
            png, svg = folder / f"{name}.png", folder / f"{name}.svg"
            figure.savefig(png, dpi=150, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
            paths += [png, svg]
    return paths

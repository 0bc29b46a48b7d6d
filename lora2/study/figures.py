"""The budget curve: the last score of each row against the steps it was trained for."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from lora2.study.spec import Study
from lora2.tables.stats import summary

# Okabe and Ito's colours, told apart without colour vision too; k = 1 and r = 1 are hollow.
COLOURS = {"lora": "#0072b2", "adalora": "#e69f00", "lora2": "#d55e00", "published": "#009e73"}
STYLE = {"svg.hashsalt": "lora2", "font.family": "DejaVu Sans", "font.size": 9}


def budget_curve(study: Study, scores: pd.DataFrame, task: str) -> Figure:
    """Draw mean and 95 % interval over seeds of each row that has two budgets or more.

    Where no row has two, every row's only budget is drawn.
    """
    own = scores.loc[scores["task"] == task]
    budgets = own.groupby("row")["steps"].nunique()
    rows = [row.id for row in study.table().rows if budgets.get(row.id, 0) >= 2]
    rows = rows or [row.id for row in study.table().rows if row.id in budgets]
    labels = {row.id: row.label for row in study.table().rows}
    methods = {row.id: row.method for row in study.table().rows}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found = own.loc[own["row"] == row].groupby("steps")["score_last"]
        points = {int(steps): summary(values) for steps, values in found}
        # A small shift, so that the intervals of one budget stand beside each other.
        x = [steps * 1.03 ** (place - len(rows) / 2) for steps in points]
        y = [one.mean for one in points.values()]
        error = [0.0 if one.n < 2 else one.high - one.mean for one in points.values()]
        colour = COLOURS.get("published" if row.endswith("-published") else methods[row], "#777777")
        small = "1" in row.removesuffix("-published")[-2:]
        axes.errorbar(x, y, yerr=error, label=labels[row], color=colour, marker="o", capsize=2,
                      linestyle="--" if small else "-", elinewidth=1,
                      markerfacecolor="white" if small else colour)  # fmt: skip
    ticks = sorted({int(steps) for steps in own["steps"]})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{steps:,}" for steps in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.6, ticks[-1] * 1.6)
    axes.set_xlabel("optimiser steps of the whole training (each its own schedule and rate)")
    axes.set_ylabel("last validation score, percent points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def write(figure: Figure, path: Path) -> None:
    """Write ``path``.svg and ``path``.png, the same bytes for the same figure."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})

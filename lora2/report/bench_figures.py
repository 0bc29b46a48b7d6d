"""One figure for each part of a bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora2.report.paper_tables import printed_values
from lora2.report.render import TASK_NAMES

# By method, the same in every figure; told apart without colour vision too (Okabe and Ito).
COLOURS = {
    "full": "#000000",
    "bitfit": "#999999",
    "lora": "#0072b2",
    "adalora": "#e69f00",
    "sora": "#56b4e9",
    "lora2-k1": "#f4a6b8",
    "lora2": "#d55e00",
    "lora_xs": "#009e73",
    "merged": "#d55e00",
    "unmerged": "#d55e00",
    "": "#bbbbbb",
}
PART_COLOURS = {
    "encoder": "#bbbbbb",
    "adapter": "#d55e00",
    "regulariser": "#e69f00",
    "allocator": "#56b4e9",
    "optimiser": "#009e73",
    "rest": "#000000",
}
FAMILIES = {"lora": "LoRA", "lora2": "LoRA²"}
TITLES = {
    "regulariser": "regulariser",
    "allocator": "allocator",
    "layer": "six matrices of a layer",
}


def _colour(row: str) -> str:
    known = [name for name in COLOURS if name and row.replace("-xs", "_xs").startswith(name)]
    return COLOURS[max(known, key=len, default="")]


def _bars(axes: Axes, frame: pd.DataFrame, column: str, form: str) -> None:
    """Horizontal bars of ``column``, one a row, the first on top, each with its number."""
    own = frame.loc[frame[column].notna()].iloc[::-1]
    bars = axes.barh(own["label"], own[column], color=[_colour(row) for row in own["row"]])
    axes.bar_label(bars, [format(value, form) for value in own[column]], padding=3, fontsize=8)
    axes.margins(x=0.18)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def micro(frame: pd.DataFrame) -> Figure:
    """Time against AdaLoRA's, and kernels, of each part; labels with their number of matrices."""
    parts = list(dict.fromkeys(frame["part"]))
    figure = Figure(figsize=(4.2 * len(parts), 4.6), layout="constrained")
    for column, part in enumerate(parts):
        own = frame.loc[frame["part"] == part]
        if own["matrices"].nunique() > 1:  # else one bar would hide another of the same name
            own = own.assign(label=own["label"] + ", " + own["matrices"].astype(str))
        top = figure.add_subplot(2, len(parts), column + 1)
        _bars(top, own, "ratio_to_adalora", ".2f")
        top.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        top.set_title(f"{TITLES[part]}: time to AdaLoRA's", fontsize=9)
        low = figure.add_subplot(2, len(parts), len(parts) + column + 1)
        _bars(low, own, "kernels", ",.0f")
        low.set_title(f"{TITLES[part]}: kernels", fontsize=9)
    return figure


def step(frame: pd.DataFrame) -> Figure:
    """Time against LoRA's and peak memory of a training step, and inference, for each encoder."""
    encoders = list(dict.fromkeys(frame["encoder"]))
    figure = Figure(figsize=(13, 3.4 * len(encoders)), layout="constrained")
    for row, encoder in enumerate(encoders):
        own = frame.loc[frame["encoder"] == encoder]
        panels = [
            ("train", "ratio_to_lora", ".2f", "training step: time to LoRA's"),
            ("train", "memory_mib", ",.0f", "peak memory of a step, MiB"),
            ("inference", "ratio_to_base", ".2f", "inference: time to no adapter's"),
        ]
        for column, (phase, name, form, title) in enumerate(panels):
            axes = figure.add_subplot(len(encoders), 3, 3 * row + column + 1)
            _bars(axes, own.loc[own["phase"] == phase], name, form)
            if name != "memory_mib":
                axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
            axes.set_title(title, fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{encoder}\n{size(own.iloc[0])}", fontsize=9)
    return figure


def size(row: pd.Series) -> str:
    """Return what a step of this row was taken on, its encoder left to the caller."""
    batch = f"{row['batch']} x {row['tokens']:.0f} tokens"
    return f"{row['layers']} layers, {batch}, {row['precision']}"


def table2(frame: pd.DataFrame) -> Figure:
    """Time against AdaLoRA's task by task, with the paper's ratio of LoRA2."""
    tasks = list(dict.fromkeys(frame["task"]))
    rows = [row for row in dict.fromkeys(frame["row"]) if row != "adalora-r8"]
    figure = Figure(figsize=(1.3 * len(tasks) + 2.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    width, places = 0.8 / len(rows), np.arange(len(tasks))
    grid = frame.pivot(index="row", columns="task", values="ratio_to_adalora")
    labels = frame.drop_duplicates("row").set_index("row")["label"]
    for number, row in enumerate(rows):
        left = places - 0.4 + (number + 0.5) * width
        axes.bar(left, grid.loc[row, tasks], width, color=_colour(row), label=labels[row])
    paper = _paper_ratios()
    known = [place for place, task in zip(places, tasks, strict=True) if task in paper]
    if known:
        values = [paper[tasks[place]] for place in known]
        axes.plot(known, values, "k_", markersize=28, label="LoRA², paper")
    axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    names = [f"{TASK_NAMES[t]}\n{_tokens(frame, t):.0f} tokens" for t in tasks]
    axes.set_xticks(places, names)
    axes.set_ylabel("time of a step to AdaLoRA's", fontsize=9)
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    _plain(axes)
    return figure


def _tokens(frame: pd.DataFrame, task: str) -> float:
    return float(frame.loc[frame["task"] == task, "tokens"].iloc[0])


def _paper_ratios() -> dict[str, float]:
    ours, base = (printed_values(2, {"column": f"{m}_s_per_it"}) for m in ("lora2", "adalora"))
    return {task: value / base[task, unit] for (task, unit), value in ours.items()}


def scaling(frame: pd.DataFrame) -> Figure:
    """Over layers the kernels of regulariser and allocator and the step's time; over k, r time."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    layers = frame.loc[frame["axis"] == "layers"]
    parts, steps = layers.loc[layers["what"] != "step"], layers.loc[layers["what"] == "step"]
    summed = parts.groupby(["row", "label", "value"], sort=False, as_index=False)["kernels"].sum()
    panels = [
        (summed, "kernels", "layers", "kernels of regulariser and allocator"),
        (steps, "ratio_to_lora", "layers", "step: time to LoRA's"),
        (frame.loc[frame["axis"] == "k"], "ratio_to_lora", "k", "step: time to LoRA r=8's"),
        (frame.loc[frame["axis"] == "r"], "ratio_to_lora", "r", "step: time to LoRA r=8's"),
    ]
    for number, (own, column, axis, title) in enumerate(panels):
        axes = figure.add_subplot(1, 4, number + 1)
        _lines(axes, own, column, by_row=axis == "layers")
        axes.set_xlabel(axis, fontsize=9)
        axes.set_title(title, fontsize=9)
    return figure


def _lines(axes: Axes, frame: pd.DataFrame, column: str, by_row: bool) -> None:
    """A line a method over ``value``; along k and r every point is a row of its own."""
    values = sorted(set(frame["value"]))
    for name, own in frame.groupby("row" if by_row else "method", sort=False):
        label = own["label"].iloc[0] if by_row else FAMILIES[name]
        points = own.sort_values("value")
        if len(points) == 1:  # LoRA among values of k, which it has not
            axes.axhline(points[column].iloc[0], color=_colour(str(name)), label=label)
            continue
        style = {"markersize": 4, "label": label, "color": _colour(str(name))}
        if name == "lora2-k1":
            style["linewidth"] = 4  # seen beneath k=8 where the two are the same
        axes.plot(points["value"], points[column], "o-", **style)
    if not by_row:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    _plain(axes)


def profile(frame: pd.DataFrame) -> Figure:
    """Each method's step in its parts, and the dearest operations of the last method's."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    parts = frame.loc[frame["kind"] == "part"]
    labels = list(dict.fromkeys(parts["label"]))[::-1]
    grid = parts.pivot(index="label", columns="name", values="ratio_to_lora").fillna(0.0)
    left = np.zeros(len(labels))
    for name in dict.fromkeys(parts["name"]):
        widths = grid.loc[labels, name].to_numpy()
        axes.barh(labels, widths, left=left, color=PART_COLOURS[name], label=name, height=0.6)
        left += widths
    for place, whole in enumerate(left):
        axes.text(whole, place, f" {whole:.2f}", va="center", fontsize=8)
    axes.margins(x=0.1)
    axes.set_title("a step's parts: time to the whole step of LoRA", fontsize=9)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    _plain(axes)
    last = frame["label"].iloc[-1]
    dearest = frame.loc[(frame["kind"] == "operation") & (frame["label"] == last)].iloc[::-1]
    axes = figure.add_subplot(1, 2, 2)
    bars = axes.barh(dearest["name"].str.removeprefix("aten::"), dearest["share"], color="#bbbbbb")
    axes.bar_label(bars, [f"{share:.1%}" for share in dearest["share"]], padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.set_title(f"{last}: operations, share of the step", fontsize=9)
    _plain(axes)
    return figure


def against(frame: pd.DataFrame) -> Figure:
    """Time against the earlier code's of the same method, and both codes' kernels."""
    now = frame.loc[frame["code"] == "this"]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot(1, 2, 1)
    _bars(axes, now, "ratio_to_then", ".2f")
    axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    then = frame["code"].iloc[0]
    axes.set_title(f"training step: time to that of {then}", fontsize=9)
    axes = figure.add_subplot(1, 2, 2)
    _bars(axes, frame.assign(label=frame["label"] + ", " + frame["code"]), "kernels", ",.0f")
    axes.set_title("kernels of a step", fontsize=9)
    return figure


FIGURES: Mapping[str, Callable[[pd.DataFrame], Figure]] = {
    "micro": micro,
    "step": step,
    "table2": table2,
    "scaling": scaling,
    "profile": profile,
    "against": against,
}


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; the same numbers give the same bytes."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return path

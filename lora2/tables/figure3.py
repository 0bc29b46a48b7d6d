"""Draw Figure 3: how many singular values each matrix of each layer keeps, a panel per task."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from lora2.markup import one_line
from lora2.records.store import readable

# The matrices in the order in which data passes through them, with the paper's symbols.
SYMBOLS = {
    "query": "$W_q$", "key": "$W_k$", "value": "$W_v$", "attention_output": "$W_o$",
    "intermediate": "$W_{f1}$", "output": "$W_{f2}$",
}  # fmt: skip
COLUMNS = {"module", "layer", "matrix", "index", "kept"}
LETTERS = 14  # of the note per inch of the figure's width: where to wrap it


def read_ranks(folder: Path, runs: Iterable[str]) -> list[pd.DataFrame]:
    """Read ranks.csv of these runs; FileNotFoundError or StoreError names one that cannot be."""
    frames = []
    for run in runs:
        path = folder / "runs" / run / "ranks.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: repeat run {run} for Figure 3")
        with readable(f"{path} cannot be read", "remove the folder and repeat", TypeError):
            frames.append(pd.read_csv(path))
            kept_ranks(frames[-1:])
    return frames


def kept_ranks(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the number of kept singular values, (matrices, layers), averaged over runs.

    A frame is a run's ranks.csv, a line per singular value; a ValueError if it lacks a column, or
    the runs adapt different matrices. They are in the order of ``SYMBOLS``, others after by name.
    """
    grids = []
    for frame in frames:
        if missing := sorted(COLUMNS - set(frame.columns)):
            raise ValueError(f"ranks.csv lacks {', '.join(missing)}: repeat the run")
        kept = frame.assign(kept=frame["kept"].astype(int))
        grids.append(kept.pivot_table("kept", "matrix", "layer", aggfunc="sum"))
    if any(not grid.axes[axis].equals(grids[0].axes[axis]) for grid in grids for axis in (0, 1)):
        raise ValueError("the runs adapt different matrices or layers")
    places = {matrix: place for place, matrix in enumerate(SYMBOLS)}
    order = sorted(grids[0].index, key=lambda matrix: (places.get(matrix, len(places)), matrix))
    return (sum(grids) / len(grids)).loc[order]


def draw(panels: Mapping[str, Sequence[pd.DataFrame]], note: str = "") -> Figure:
    """Draw one heat map per task, all from 0 to the initial rank; ``note`` is printed below."""
    grids = {title: kept_ranks(frames) for title, frames in panels.items()}
    most = max(int(frame.groupby("module")["index"].nunique().max())
               for frames in panels.values() for frame in frames)  # fmt: skip
    matrices, layers = (max(grid.shape[axis] for grid in grids.values()) for axis in (0, 1))
    columns = 1 if len(grids) == 1 else 2
    rows = math.ceil(len(grids) / columns)
    width, height = max(3.4, 0.34 * layers + 0.8), 0.3 * matrices + 0.9
    figure = Figure(figsize=(columns * width + 0.9, rows * height + 0.4), layout="constrained")
    panes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panes[len(grids) :]:
        axes.set_visible(False)
    for axes, (title, grid) in zip(panes, grids.items(), strict=False):
        image = _panel(axes, grid, title, most)
    bar = figure.colorbar(image, ax=panes[: len(grids)], shrink=0.8, pad=0.02)
    bar.set_label(f"kept singular values of {most}", fontsize=9)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.outline.set_visible(False)
    below = textwrap.wrap(note, int(LETTERS * figure.get_figwidth()))
    figure.supxlabel("\n".join(["layer", *below]), fontsize=9)
    return figure


def _panel(axes: Axes, grid: pd.DataFrame, title: str, most: int) -> AxesImage:
    values = grid.to_numpy(dtype=float)  # (matrices, layers), NaN where nothing is adapted
    # Light = kept, as in the paper. Even in lightness: readable in grey and with colour blindness.
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=most, aspect="auto")
    share = np.nansum(values) / (most * np.count_nonzero(~np.isnan(values)))
    axes.set_title(f"{title}: {share:.0%} kept", fontsize=10)
    # matplotlib reads text between dollar signs as mathematics.
    names = [SYMBOLS.get(name, one_line(name).replace("$", r"\$")) for name in grid.index]
    axes.set_xticks(range(grid.shape[1]), [str(layer) for layer in grid.columns], fontsize=8)
    axes.set_yticks(range(grid.shape[0]), names, fontsize=9)
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(values):
        if not math.isnan(value):
            colour = "black" if value >= 0.5 * most else "white"
            text = f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    for edge in axes.spines.values():
        edge.set_visible(False)
    return image


def write(
    panels: Mapping[str, Sequence[pd.DataFrame]], stem: Path, note: str = ""
) -> tuple[Path, Path]:
    """Write ``stem``.png and ``stem``.svg; the same ranks give the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with matplotlib.rc_context({"svg.hashsalt": "lora2", "font.family": "DejaVu Sans"}):
        draw(panels, note).savefig(png, dpi=160, metadata={"Software": None})
        draw(panels, note).savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg

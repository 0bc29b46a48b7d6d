"""Figure 3 from ranks.csv: the right numbers, and the same file every time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from lora2.tables import figure3 as figures
from tests.tables.synthetic import make_run, ranks


def test_kept_ranks_counts_and_averages_over_seeds() -> None:
    first = ranks(r=4, keep={(0, "query"): 4, (1, "output"): 0})
    second = ranks(r=4, keep={(0, "query"): 1, (1, "output"): 0})
    grid = figures.kept_ranks([first, second])
    assert list(grid.index) == list(figures.SYMBOLS) and list(grid.columns) == [0, 1]
    assert grid.loc["query", 0] == 2.5 and grid.loc["output", 1] == 0
    assert grid.loc["key", 0] == 2
    bar = figures.draw({"RTE": [first, second]}).axes[-1]
    assert bar.get_ylabel() == "kept singular values of 4"


def test_ranks_read_back_from_csv_are_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", task="mrpc")
    read = figures.read_ranks(tmp_path, ["a", "b"])
    pd.testing.assert_frame_equal(figures.kept_ranks(read), figures.kept_ranks([ranks()]))
    (tmp_path / "runs" / "a" / "ranks.csv").unlink()
    with pytest.raises(FileNotFoundError, match="repeat run a"):
        figures.read_ranks(tmp_path, ["a"])


def test_lighter_means_kept_and_every_cell_carries_its_number() -> None:
    figure = figures.draw({"RTE": [ranks(r=4, keep={(0, "query"): 4, (1, "query"): 0})]})
    axes = figure.axes[0]
    assert axes.get_title() == "RTE: 50% kept"
    image = axes.images[0]

    def light(value: float) -> float:
        return sum(to_rgb(image.cmap(image.norm(value))))

    assert light(0) < light(1) < light(2) < light(3) < light(4)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 12 and texts[(0, 0)] == "4" and texts[(1, 0)] == "0"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["$W_q$", "$W_k$"]


def test_a_long_note_is_broken_to_the_width_of_the_figure() -> None:
    note = "a short budget, the same for all rows. " * 4
    figure = figures.draw({"MRPC": [ranks()]}, note)
    layer, *below = figure.get_supxlabel().split("\n")
    assert layer == "layer" and " ".join(below) == note.strip()
    assert max(map(len, below)) <= figures.LETTERS * figure.get_figwidth()


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    panels = {"RTE": [ranks(layers=1, keep={(0, "key"): 8})]}
    first = [p.read_bytes() for p in figures.write(panels, tmp_path / "one" / "figure3", "note")]
    second = [p.read_bytes() for p in figures.write(panels, tmp_path / "two" / "figure3", "note")]
    assert first == second
    assert first[0].startswith(b"\x89PNG") and b"<dc:date>" not in first[1]
    other = figures.write({"RTE": [ranks(layers=1)]}, tmp_path / "three" / "figure3", "note")
    assert other[1].read_bytes() != first[1]


def test_unusable_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks kept"):
        figures.kept_ranks([ranks().drop(columns="kept")])
    with pytest.raises(ValueError, match="different matrices or layers"):
        figures.kept_ranks([ranks(layers=2), ranks(layers=3)])

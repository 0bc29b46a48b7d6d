"""The files a reader sees: every number, every warning, and no broken markup."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora2 import markup as escape
from lora2.markup import tex_float
from lora2.records import store
from lora2.sweep.table import load_profile
from lora2.tables import render
from tests.tables.synthetic import make_results, make_run

LABEL = "A_B|C & 50% *x* <k> $1$"
ROWS = [{"label": LABEL, "method": "lora", "paper_row": {"method": "lora", "rank": 1},
         "against": "LoRA2 (k=1)"},
        {"label": "LoRA2 (k=1)", "method": "lora2", "ours": True,
         "paper_row": {"method": "lora2", "rank": 1}}]  # fmt: skip


def written(folder: Path, profile: str, seeds: tuple[int, ...] | None = (0, 1)) -> dict[str, str]:
    runs = store.read(folder)
    results = make_results(runs, ROWS, ["rte", "qqp"], seeds=seeds, title="GLUE")
    texts = render.texts(results, folder, load_profile(profile))
    written = render.publish(folder, "table1", texts, whole=True)
    paths = [Path(line.removeprefix("wrote ")) for line in written.splitlines()]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1):
        make_run(tmp_path, f"o{seed}", seed=seed, score=0.80 + seed / 100)
        make_run(tmp_path, f"q{seed}", task="qqp", seed=seed, score={"accuracy": 0.9, "f1": 0.86})
    make_run(tmp_path, "t0", method="lora", seed=0, score=0.7)
    make_run(tmp_path, "t1", method="lora", seed=1, status="diverged")
    return tmp_path


def test_markdown_shows_scores_losses_and_the_paper(folder: Path) -> None:
    text = written(folder, "paper")["table1.md"]
    ours = next(line for line in text.splitlines() if line.startswith("| LoRA2 (k=1)"))
    assert "80.50 ± 0.71" in ours and "90.00/86.00 ± 0.00/0.00" in ours
    assert "84.25 ± 0.35" in ours and "167,616" in ours
    theirs = next(line for line in text.splitlines() if line.startswith("| A"))
    assert "70.00 (1/2; 1 diverged)" in theirs and "– (0/2; 2 missing)" in theirs
    assert theirs.endswith("| – |")  # no average without QQP
    assert "| (paper) |" in text and "89.53" in text and "91.62/88.05" in text
    assert "-9.03" in text  # 80.50 - 89.53
    assert "Score after the last step" in text and "79.50 ± 0.71" in text


@pytest.mark.parametrize(
    ("profile", "words"),
    [("embedded", "not the paper's encoder and not the paper's data"),
     ("small", "not the paper's encoder")],
)  # fmt: skip
def test_other_profiles_say_so_and_give_no_difference(
    folder: Path, profile: str, words: str
) -> None:
    files = written(folder, profile)
    for name in ("table1.md", "table1.tex"):
        assert words in files[name]
        assert "difference)" not in files[name]
        assert files[name].index(words) < files[name].index("80.50")
    assert words not in written(folder, "paper")["table1.md"]


def test_a_reader_learns_how_many_runs_a_cell_has(folder: Path) -> None:
    text = written(folder, "paper")["table1.md"]
    assert "mean ± standard deviation of n = 2 runs per cell (seeds 0, 1)" in text
    assert "one run per cell (seed 0)" in written(folder, "paper", (0,))["table1.md"]
    make_run(folder, "o2", seed=7, score=0.82)
    text = written(folder, "paper", None)["table1.md"]  # whatever seeds were run, none missing
    assert "n = 3 runs per cell (seeds 0, 1, 7)" in text
    ours = next(line for line in text.splitlines() if line.startswith("| LoRA2 (k=1)"))
    assert "81.00 ± 1.00 |" in ours and "90.00/86.00 ± 0.00/0.00 (n=2) |" in ours


def test_every_markdown_row_has_the_columns_of_its_head(folder: Path) -> None:
    text = written(folder, "paper")["table1.md"]
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1
    assert r"A\_B\|C &amp; 50% \*x\* &lt;k&gt; \$1\$" in text


def test_latex_is_escaped_and_rectangular(folder: Path) -> None:
    text = written(folder, "paper")["table1.tex"]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 7
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
    assert r"A\_B\textbar{}C \& 50\% *x* \textless{}k\textgreater{} \$1\$" in text
    assert r"80.50 $\pm$ 0.71" in text and "±" not in text
    assert (
        r"\caption{GLUE (profile paper). Profile paper: the" in text
    )  # LaTeX counts tables itself


@pytest.mark.parametrize(("columns", "kind"), [(9, "table"), (10, "sidewaystable")])
def test_a_wide_latex_table_is_turned_and_its_notes_stand_below(columns: int, kind: str) -> None:
    text = tex_float("a_b", [["x"] * columns] * 2, ["50% lost.", "Two."])
    assert text.startswith(rf"\begin{{{kind}}}") and text.endswith(f"\\end{{{kind}}}\n")
    below = text.split(r"\end{tabular}")[1]
    assert r"50\% lost. Two." in below and r"\caption{a\_b}" in text
    assert "footnotesize" not in tex_float("x", [["x"], ["y"]])


def test_notes_stand_under_the_table(folder: Path) -> None:
    make_run(folder, "o2", seed=2, commit="other")
    clean = written(folder, "paper")["table1.md"]
    assert "mixed" not in clean  # seed 2 is not in the plan
    files = written(folder, "paper", (0, 1, 2))
    assert "- Runs of 2 commits are mixed: abc123, other." in files["table1.md"]
    assert "Runs of 2 commits are mixed" in files["table1.tex"]


def test_comparisons_are_printed_and_saved(folder: Path) -> None:
    files = written(folder, "paper")
    assert "## Differences" in files["table1.md"] and "+10.00" in files["table1.md"]
    saved = pd.read_csv(folder / "table1_tests.csv")
    assert saved.loc[saved["task"] == "rte", "difference"].iloc[0] == pytest.approx(10.0)


def test_csv_is_the_long_form_and_writing_again_changes_nothing(folder: Path) -> None:
    first = written(folder, "paper")
    assert written(folder, "paper") == first
    frame = pd.read_csv(folder / "table1.csv")
    assert len(frame) == 2 * 3 + 1  # three metrics each, one average
    assert {"mean", "std", "last_mean", "paper", "difference", "n", "diverged"} <= set(frame)


def test_a_plan_without_any_run_prints_an_empty_table(tmp_path: Path) -> None:
    make_run(tmp_path, "a", method="sora")
    text = written(tmp_path, "embedded")["table1.md"]
    assert "– (0/2; 2 missing)" in text and "## Differences" not in text


@given(st.text())
def test_escaped_text_cannot_break_a_table(text: str) -> None:
    flat = escape.markdown(text)
    assert "\n" not in flat and "\r" not in flat
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", flat)
    assert "<" not in flat
    tex = escape.tex(text)
    assert not re.search(r"(?<!\\)[&%#_]", tex) and "\n" not in tex

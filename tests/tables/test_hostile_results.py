"""A results folder from anywhere: what it says stays text, and no name in it leads elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora2 import markup as escape
from lora2.records import store
from lora2.sweep.table import load_profile
from lora2.tables import compare, render
from lora2.tables import figure3 as figures
from tests.tables.synthetic import make_results, make_run, ranks

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "a|b `c` <script>alert(1)</script> [x](javascript:alert(1)) ![i](http://h/x.png) "
    "\\input{/etc/passwd} \\write18{touch pwned} $x$ {y} #1 %c &d ~e ^f _g_ *h* \x1b[31m "
    "\u202e\x00 --> </table>\n# Title\r\n| other | row |"
)


def written(folder: Path, label: str) -> dict[str, str]:
    runs = store.collect(folder)
    rows = [{"label": label, "method": "lora2"}, {"label": "B", "method": "lora", "against": label}]
    results = make_results(runs, rows, ["rte"], title=label, conditions={"protocol": label})
    texts = render.texts(results, folder, load_profile("embedded"))
    render.publish(folder, "table1", texts, whole=True)
    return {path.name: path.read_text() for path in folder.glob("table1*")}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs whose every text is HOSTILE, in ways that bring it below the table."""
    texts = ("error", "device", "commit", "torch", "data_marks", "protocol", "precision", "notes")
    for i, method in enumerate(["lora2", "lora"]):
        more = {name: f"{HOSTILE} {i}" for name in texts}
        make_run(
            tmp_path, f"run{i}", method=method, settings={"x": HOSTILE}, evaluations=i + 3, **more
        )
    make_run(tmp_path, "lost", method="lora", seed=1, status="failed", error=HOSTILE)
    return tmp_path


def test_hostile_text_stays_text_in_markdown(hostile: Path) -> None:
    text = written(hostile, HOSTILE)["table1.md"]
    assert "alert" in text and "devices are mixed" in text  # it is there, as text
    assert not re.search(r"<(?!br)", text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`$\[]", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert [line for line in text.splitlines() if line.startswith("# ")] == text.splitlines()[:1]
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_hostile_text_stays_text_in_latex(hostile: Path) -> None:
    text = written(hostile, HOSTILE)["table1.tex"]
    assert "input" in text
    known = ("begin", "end", "par", "smallskip", "footnotesize", "raggedright",
             "centering", "caption", "resizebox", "ifdim", "width", "linewidth",
             "else", "fi", "toprule", "midrule", "bottomrule", "pm", "textbackslash",
             "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar")  # fmt: skip
    assert set(re.findall(r"\\([A-Za-z]+)", text)) <= set(known)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


@given(st.text())
def test_escaped_text_is_one_line_without_control(text: str) -> None:
    for flat in (escape.markdown(text), escape.tex(text)):
        assert flat.isprintable() or not re.search(
            r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", flat
        )
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`$\[\]*_]", escape.markdown(text))


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", ".hidden", "", "x" * 300, "a\nb"])
def test_a_name_of_a_run_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    make_run(tmp_path, "whole")
    store.collect(tmp_path)
    frame = pd.read_csv(tmp_path / "runs.csv")
    frame.loc[0, "run"] = name
    before = frame.to_csv(index=False)
    (tmp_path / "runs.csv").write_text(before)
    with pytest.raises(store.StoreError, match="is not the name of a run"):
        store.collect(tmp_path)
    assert (tmp_path / "runs.csv").read_text() == before
    (tmp_path / "runs.csv").unlink()
    folder = make_run(tmp_path, "evil")
    frame = pd.read_csv(folder / "metrics.csv").assign(run=name)
    frame.to_csv(folder / "metrics.csv", index=False)
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]


def test_a_run_folder_under_another_name_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, "whole")
    os.rename(make_run(tmp_path, "one"), tmp_path / "runs" / "other")
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]
    assert "other holds run one" in caplog.text


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "!!python/object/apply:os.system ['touch pwned']", "- a", "x", "a: {" * 40, "\x00",
     "a: 1\na: 2"],
    ids=["laughs", "tag", "list", "word", "deep", "control", "twice"],
)  # fmt: skip
def test_hostile_settings_of_a_run_are_left_out_at_once(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, "whole")
    (make_run(tmp_path, "evil") / "config.yaml").write_text(text)
    started = time.process_time()
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]
    assert time.process_time() - started < 3
    assert "evil" in caplog.text and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "[" * 100_000])
def test_settings_in_runs_csv_that_are_none_are_named(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, "a")
    store.collect(tmp_path)
    frame = pd.read_csv(tmp_path / "runs.csv").assign(config=text)
    with pytest.raises(store.StoreError, match="run a: its settings"):
        store.settings(frame)


@pytest.mark.parametrize(
    ("column", "value"),
    [("best_accuracy", "high"), ("best_accuracy", "inf"), ("last_accuracy", "NaN"), ("seed", "one"),
     ("params_adapter", "many"), ("steps", "<script>")],
)  # fmt: skip
def test_what_is_no_number_is_named(tmp_path: Path, column: str, value: str) -> None:
    make_run(tmp_path, "a")
    store.collect(tmp_path)
    frame = pd.read_csv(tmp_path / "runs.csv", dtype="object")
    frame[column] = value
    frame.to_csv(tmp_path / "runs.csv", index=False)
    os.rename(tmp_path / "runs", tmp_path / "gone")
    with pytest.raises(store.StoreError, match=f"column {column} holds a value that is no"):
        store.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    (make_run(tmp_path, "a") / "predictions.parquet").write_bytes(content)
    with pytest.raises(store.StoreError, match=r"predictions\.parquet cannot be read.*repeat"):
        compare.read_predictions(tmp_path, "a", "accuracy")


@pytest.mark.parametrize(
    "text", ["", "module,layer\n", "module,layer,matrix,index,kept\na,0,q,0,x\n"]
)
def test_damaged_ranks_are_named(tmp_path: Path, text: str) -> None:
    (make_run(tmp_path, "a") / "ranks.csv").write_text(text)
    with pytest.raises(store.StoreError, match=r"ranks\.csv cannot be read.*repeat"):
        figures.read_ranks(tmp_path, ["a"])


def test_names_in_ranks_are_drawn_as_text(tmp_path: Path) -> None:
    frame = ranks().replace({"matrix": {"query": r"$\input{x}$ <script>"}})
    png, svg = figures.write({"RTE": [frame]}, tmp_path / "figure")
    assert png.stat().st_size > 0 and "<script>" not in svg.read_text()


def test_the_scripts_answer_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("report_script", ROOT / "scripts" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_run(tmp_path, "a")
    store.collect(tmp_path)
    frame = pd.read_csv(tmp_path / "runs.csv").assign(schema=2)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert module.main([str(tmp_path), "profile=embedded", "table=3", "rows=uv"]) == 2
    assert "update your checkout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schema", "words"),
    [(2, "update your checkout"), (99, "update your checkout"), (0, "repeat its runs"),
     (-1, "repeat its runs"), (0.5, "repeat its runs"), (1.5, "update your checkout"),
     ("one", "is not a table|without a schema"), ("", "without a schema")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["folder", "csv"])
def test_another_schema_is_never_misread(
    tmp_path: Path, schema: object, words: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, "a")
    store.collect(tmp_path)
    path = tmp_path / "runs.csv"
    if place == "folder":
        make_run(tmp_path, "b", schema=schema)
    else:
        pd.read_csv(path).assign(schema=schema).to_csv(path, index=False)
    before = path.read_bytes()
    if place == "folder" and schema in ("one", ""):  # no version's folder: left out and named
        assert store.read(tmp_path)["run"].tolist() == ["a"]
        assert "b" in caplog.text
        return
    with pytest.raises(store.StoreError, match=words):
        store.collect(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "column",
    ["commit", "backbone", "backbone_revision", "protocol", "device", "precision", "python",
     "torch", "transformers", "peft", "datasets", "accelerate"],
)  # fmt: skip
def test_each_condition_that_differs_from_its_neighbours_is_flagged(
    tmp_path: Path, column: str
) -> None:
    make_run(tmp_path, "a", seed=0, settings={"k": 8})
    make_run(tmp_path, "b", seed=1, settings={"k": 8}, **{column: "other"})
    text = written(tmp_path, "LoRA2")["table1.md"]
    assert f"Runs of 2 {render.MIXED[column]} are mixed" in text and "other" in text


NAMES = st.text("abcdefghij0123456789-_.", min_size=1, max_size=12).filter(lambda s: s[0].isalnum())
FLOATS = st.floats(-1, 1, allow_nan=False)
RUNS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"seed": st.integers(0, 2**32 - 1), "best_accuracy": FLOATS, "error": st.text(max_size=20)}
    ),
    min_size=1, max_size=5,
)  # fmt: skip


RETURN = {"a": {"seed": 0, "best_accuracy": 0.5, "error": "half a bar\rof progress"}}


def frame_of(rows: dict[str, dict[str, object]]) -> pd.DataFrame:
    fixed = {"schema": 1, "status": "finished", "backbone": "b", "task": "rte", "method": "lora2"}
    return pd.DataFrame([{"run": name, **fixed, **dict(sorted(row.items())),
                          "config": json.dumps({"k": name})}
                         for name, row in rows.items()])  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(RUNS, st.randoms())
@example(RETURN, random.Random(0))
def test_runs_csv_keeps_every_row_to_the_bit_whatever_their_order(tmp_path_factory, rows, order):
    folder = tmp_path_factory.mktemp("store")
    (folder / "runs.csv").write_text(store.as_csv(frame_of(rows)), newline="")
    first = store.collect(folder)
    text = (folder / "runs.csv").read_bytes()
    found = first.set_index("run")
    assert set(found.index) == set(rows)
    for name, row in rows.items():
        assert found.loc[name, "seed"] == row["seed"]
        assert found.loc[name, "best_accuracy"] == row["best_accuracy"]
    assert [one["k"] for one in store.settings(first)] == first["run"].tolist()
    shuffled = list(rows.items())
    order.shuffle(shuffled)
    (folder / "runs.csv").write_text(store.as_csv(frame_of(dict(shuffled))), newline="")
    pd.testing.assert_frame_equal(store.collect(folder), first)
    assert (folder / "runs.csv").read_bytes() == text
    assert store.collect(folder).equals(first)

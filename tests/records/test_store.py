"""Run folders and runs.csv: what is read, what is refused, what is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora2.records import store
from tests.tables.synthetic import make_run


def test_collect_reads_folders_and_writes_runs_csv(tmp_path: Path) -> None:
    make_run(tmp_path, "b", seed=2, score=0.7, settings={"k": 8})
    make_run(tmp_path, "a", seed=1, score=0.9, settings={"k": 1})
    frame = store.collect(tmp_path)
    assert frame["run"].tolist() == ["a", "b"]
    assert frame["best_accuracy"].tolist() == [0.9, 0.7]
    assert [s["method.k"] for s in store.settings(frame)] == [1, 8]
    pd.testing.assert_frame_equal(store.read(tmp_path), frame)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_committed_csv_alone_is_enough_and_gives_the_same(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a", score=0.1 + 0.2, settings={"target_modules": ["query", "key"]})
    frame = store.collect(tmp_path / "one")
    (tmp_path / "two").mkdir()
    text = (tmp_path / "one" / "runs.csv").read_bytes()
    (tmp_path / "two" / "runs.csv").write_bytes(text)
    again = store.collect(tmp_path / "two")
    assert again["best_accuracy"].tolist() == [0.1 + 0.2] == frame["best_accuracy"].tolist()
    assert store.settings(again) == store.settings(frame)
    assert (tmp_path / "two" / "runs.csv").read_bytes() == text


def test_rows_older_than_a_column_are_read_beside_newer_ones(tmp_path: Path) -> None:
    make_run(tmp_path, "old")
    store.collect(tmp_path)
    assert "attention" not in (tmp_path / "runs.csv").read_text()
    os.rename(tmp_path / "runs" / "old", tmp_path / "gone")
    make_run(tmp_path, "new", attention="sdpa", tf32=False)
    frame = store.collect(tmp_path).set_index("run")
    assert frame["attention"].to_dict() == {"old": "", "new": "sdpa"}
    again = store.read(tmp_path).set_index("run")
    assert again["attention"].to_dict() == frame["attention"].to_dict()
    assert len(frame) == 2 and frame["best_accuracy"].notna().all()


def test_folder_wins_over_the_row_of_the_same_run(tmp_path: Path) -> None:
    make_run(tmp_path, "a", score=0.5)
    make_run(tmp_path, "b", score=0.6)
    store.collect(tmp_path)
    for name in ("a", "b"):
        os.rename(tmp_path / "runs" / name, tmp_path / f"gone-{name}")
    make_run(tmp_path, "a", score=0.9)
    make_run(tmp_path, "c", score=0.7)
    frame = store.collect(tmp_path).set_index("run")
    assert frame["best_accuracy"].to_dict() == {"a": 0.9, "b": 0.6, "c": 0.7}


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    make_run(tmp_path, "12e4567", config_hash="00123", commit="7e10", task="rte")
    store.collect(tmp_path)
    row = pd.concat([store.read(tmp_path)]).iloc[0]
    assert (row["run"], row["config_hash"], row["commit"]) == ("12e4567", "00123", "7e10")


def test_paths_of_this_machine_do_not_reach_the_csv(tmp_path: Path) -> None:
    make_run(tmp_path, "a", settings={"checkpoint": "/runs/x", "type": "VERA"})
    config = json.loads(store.collect(tmp_path).loc[0, "config"])
    assert "backbone.path" not in config and "method.checkpoint" not in config
    assert config["method.type"] == "VERA"
    assert "somewhere" not in (tmp_path / "runs.csv").read_text()


@pytest.mark.parametrize("damage", ["status", "metrics.csv", "config.yaml"])
def test_half_written_folder_is_left_out_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, "whole")
    (make_run(tmp_path, "half") / damage).unlink()
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]
    assert "half" in caplog.text and damage in caplog.text


@pytest.mark.parametrize("text", ["", "run,schema\n", "run,schema\na,1\n"])
def test_cut_off_metrics_are_left_out(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, "whole")
    (make_run(tmp_path, "cut") / "metrics.csv").write_text(text)
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]


def test_status_file_and_row_must_agree(tmp_path: Path) -> None:
    make_run(tmp_path, "whole", status="diverged")
    (make_run(tmp_path, "torn") / "status").write_text("failed")
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]


def test_folders_still_being_written_are_not_read(tmp_path: Path) -> None:
    make_run(tmp_path, "whole")
    make_run(tmp_path, ".tmp-whole")
    assert store.collect(tmp_path)["run"].tolist() == ["whole"]


@pytest.mark.parametrize("place", ["folder", "csv"])
def test_newer_schema_is_refused_and_nothing_overwritten(tmp_path: Path, place: str) -> None:
    make_run(tmp_path, "a")
    store.collect(tmp_path)
    before = (tmp_path / "runs.csv").read_text()
    if place == "folder":
        make_run(tmp_path, "b", schema=2)
    else:
        before = pd.read_csv(tmp_path / "runs.csv").assign(schema=2).to_csv(index=False)
        (tmp_path / "runs.csv").write_text(before)
    with pytest.raises(store.StoreError, match=r"schema 2, .* schema 1: update your checkout"):
        store.collect(tmp_path)
    assert (tmp_path / "runs.csv").read_text() == before


def test_no_runs_at_all_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"run scripts/reproduce\.py first"):
        store.collect(tmp_path / "embedded")


def test_failed_replacement_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.csv"
    store.write_atomically(path, "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        store.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KEYS = st.sampled_from("abc")
NESTED = st.recursive(st.integers(), lambda c: st.dictionaries(KEYS, c, min_size=1), max_leaves=6)


@given(st.dictionaries(KEYS, NESTED))
def test_flatten_keeps_every_leaf(config: dict[str, object]) -> None:
    def leaves(value: object) -> list[object]:
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        return [value]

    assert list(store.flatten(config).values()) == leaves(config)

"""Rows against LoRA2 on synthetic runs with known predictions."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lora2.records import store
from lora2.tables import stats
from lora2.tables.compare import COLUMNS, SAVED, compare
from tests.tables.synthetic import make_results, make_run, predictions

ROWS = [{"label": "LoRA", "method": "lora", "against": "LoRA2"},
        {"label": "LoRA2", "method": "lora2", "ours": True}]  # fmt: skip


def compared(folder: Path, tasks: tuple[str, ...] = ("rte",), rows: list = ROWS) -> pd.DataFrame:
    runs = store.read(folder)
    return compare(make_results(runs, rows, tasks), folder)


def test_paired_by_seed_over_common_seeds_only(tmp_path: Path) -> None:
    ours, theirs = [0.83, 0.84, 0.90], [0.80, 0.83, 0.88]
    for seed in range(3):
        make_run(tmp_path, f"o{seed}", seed=seed, score=ours[seed])
        make_run(tmp_path, f"t{seed}", seed=seed, score=theirs[seed], method="lora")
    make_run(tmp_path, "o3", seed=3, score=0.1)
    got = compared(tmp_path)
    assert list(got.columns) == COLUMNS and len(got) == 1
    line = got.iloc[0]
    assert (line["label"], line["against"], line["n"]) == ("LoRA", "LoRA2", 3)
    assert line["difference"] == pytest.approx(2.0)
    assert line["seed_p"] == pytest.approx(stats.by_seed([3.0, 1.0, 2.0]).p)
    assert line["seed_p_holm"] == line["seed_p"]  # a family of one
    assert math.isnan(line["example_p"]) and "not here" in line["example_test"]


def test_paired_by_example_merges_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    expected = []
    for seed in range(3):
        ours = np.where(rng.random(60) < 0.9, label, 1 - label)
        theirs = np.where(rng.random(60) < 0.6, label, 1 - label)
        make_run(tmp_path, f"o{seed}", seed=seed, guesses=predictions(label, ours))
        # Another order of the same examples must not matter.
        shuffled = predictions(label, theirs).sample(frac=1, random_state=seed)
        make_run(tmp_path, f"t{seed}", seed=seed, method="lora", guesses=shuffled)
        expected.append(stats.mcnemar(ours == label, theirs == label))
    line = compared(tmp_path).iloc[0]
    assert line["example_test"] == "exact McNemar (3 seeds)"
    assert line["example_p"] == pytest.approx(stats.merge(expected))
    assert line["example_p"] < 0.01


def test_a_test_by_example_outlives_its_run_folders_but_not_another_score(tmp_path: Path) -> None:
    label = np.array([0, 1, 1, 0] * 5)
    make_run(tmp_path, "o", score=0.9, guesses=predictions(label, label))
    make_run(tmp_path, "t", score=0.8, method="lora", guesses=predictions(label, 1 - label))
    runs = store.collect(tmp_path)
    first = compared(tmp_path)
    assert first["example_p"].iloc[0] < 1e-5
    shutil.rmtree(tmp_path / "runs")
    pd.testing.assert_frame_equal(compared(tmp_path), first)
    runs = runs.assign(best_accuracy=runs["best_accuracy"].where(runs["method"] == "lora2", 0.7))
    changed = compare(make_results(runs, ROWS, ("rte",)), tmp_path).iloc[0]
    assert "not here" in changed["example_test"] and math.isnan(changed["example_p"])


@pytest.mark.parametrize("text", ["", "first,second\na,b\n", "x"])
def test_a_damaged_file_of_saved_tests_is_named(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, "o")
    (tmp_path / SAVED).write_text(text)
    with pytest.raises(store.StoreError, match=r"example_tests\.csv is damaged.*remove it"):
        compared(tmp_path)


def test_different_examples_are_not_compared(tmp_path: Path) -> None:
    label = np.array([0, 1, 1, 0])
    make_run(tmp_path, "o", guesses=predictions(label, label))
    make_run(tmp_path, "t", method="lora", guesses=predictions(label[:3], label[:3]))
    line = compared(tmp_path).iloc[0]
    assert math.isnan(line["example_p"])
    assert line["example_test"] == "none (no common predictions)"


def test_mnli_splits_are_tested_apart(tmp_path: Path) -> None:
    label = np.tile([0, 1, 2], 10)
    wrong = (label + 1) % 3

    def both(matched: np.ndarray) -> pd.DataFrame:
        parts = [predictions(label, matched, "validation_matched"),
                 predictions(label, label, "validation_mismatched")]  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    make_run(tmp_path, "o", task="mnli", guesses=both(label))
    make_run(tmp_path, "t", task="mnli", method="lora", guesses=both(wrong))
    got = compared(tmp_path, ("mnli",))
    p = got.set_index("metric")["example_p"]
    assert p["matched_accuracy"] == pytest.approx(2 / 2**30)
    assert p["mismatched_accuracy"] == 1.0


def test_correlations_are_bootstrapped_and_holm_is_over_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    score = rng.uniform(0, 5, 200)
    label = rng.integers(0, 2, 200)
    for method in ("lora2", "lora"):
        noise = 0.3 if method == "lora2" else 2.0
        make_run(tmp_path, f"s-{method}", task="stsb", method=method,
                 guesses=predictions(score, score + rng.normal(scale=noise, size=200)))  # fmt: skip
        guess = np.where(rng.random(200) < 0.7, label, 1 - label)
        make_run(tmp_path, f"c-{method}", task="cola", method=method,
                 guesses=predictions(label, guess))  # fmt: skip
    got = compared(tmp_path, ("stsb", "cola"))
    assert got["example_test"].tolist() == ["paired bootstrap (1 seed)"] * 2
    assert got["example_p"][0] < 0.01 < got["example_p"][1]
    assert got["example_p_holm"].tolist() == stats.holm(got["example_p"].tolist())
    assert got["example_p_holm"][0] == pytest.approx(2 * got["example_p"][0])


def test_without_predictions_seeds_are_still_compared(tmp_path: Path) -> None:
    make_run(tmp_path, "o")
    make_run(tmp_path, "t", method="lora", score=0.7)
    line = compared(tmp_path).iloc[0]
    assert line["difference"] == pytest.approx(10.0) and line["seed_test"] == "none (n=1)"
    empty = compared(tmp_path, rows=ROWS[1:])
    assert empty.empty and list(empty.columns) == COLUMNS

"""Rows held out of train: what is chosen on them has not seen the validation split."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.config.schema import config_hash
from lora2.embedded import make_split
from lora2.glue import data as glue_data
from lora2.glue.data import load_task
from lora2.glue.tasks import TASKS
from lora2.sweep.cost import evaluation_steps

EMBEDDED = ("method=lora", "backbone=embedded")


@pytest.fixture
def no_validation(monkeypatch):
    """Fail where a validation split is made or read."""
    read = glue_data._read

    def guarded(task, source, dir, splits):
        assert not [split for split in splits if "validation" in split], "validation was read"
        return read(task, source, dir, splits)

    monkeypatch.setattr(glue_data, "_read", guarded)


def sentences(frame: pd.DataFrame) -> list[tuple]:
    return list(frame.drop(columns="idx").itertuples(index=False, name=None))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_train_is_parted_and_the_validation_split_is_not_read(no_validation, task):
    whole = make_split(task, "train")
    data = load_task(task, "embedded", holdout=50)
    held = pd.concat(data.validation.values())
    assert len(held) == 50 and len(data.train) == len(whole) - 50
    assert sorted([*data.train["idx"], *held["idx"]]) == sorted(whole["idx"])
    assert data.marks == ("embedded data", "scored on 50 rows held out of train")


def test_mnli_has_one_half_for_each_of_its_splits():
    data = load_task("mnli", "embedded", holdout=51)
    assert {name: len(frame) for name, frame in data.validation.items()} == {
        "holdout_matched": 26,
        "holdout_mismatched": 25,
    }


def test_the_same_rows_are_held_out_every_time_and_others_by_another_seed():
    def held(seed):
        return sentences(load_task("rte", "embedded", holdout=40, seed=seed).validation["holdout"])

    assert held(0) == held(0) != held(1)


def test_classes_keep_their_shares():
    shares = make_split("mrpc", "train")["label"].mean()
    data = load_task("mrpc", "embedded", holdout=100)
    assert data.validation["holdout"]["label"].mean() == pytest.approx(shares, abs=0.01)


def test_a_subset_is_drawn_first_and_held_out_of():
    whole = load_task("rte", "embedded", train_rows=100)
    parted = load_task("rte", "embedded", train_rows=100, holdout=30)
    assert len(parted.train) == 70
    together = pd.concat([parted.train, parted.validation["holdout"]]).sort_values("idx")
    assert np.array_equal(together["idx"], whole.train["idx"])
    assert "train_rows=100" in parted.marks[1] and "30 rows held out" in parted.marks[2]


def test_rows_left_decide_the_length_of_a_run():
    words = ["task=rte", *EMBEDDED, "train.max_steps=null", "train.num_train_epochs=3"]
    rows = len(make_split("rte", "train"))
    resolved = resolve([*words, "data.holdout=100"])
    assert resolved.steps == 3 * math.ceil((rows - 100) / 32)
    config = resolve(["task=rte", *EMBEDDED, "train.max_steps=60", "data.holdout=96"]).config
    assert evaluation_steps(config, 60) == pytest.approx(96 / 32 / 3)


def test_a_run_without_it_keeps_its_name():
    base = resolve(["task=rte", *EMBEDDED, "seed=1"]).config
    assert config_hash(resolve(["task=rte", *EMBEDDED, "seed=1", "data.holdout=null"]).config) == (
        config_hash(base)
    )
    assert config_hash(resolve(["task=rte", *EMBEDDED, "seed=1", "data.holdout=9"]).config) != (
        config_hash(base)
    )


@pytest.mark.parametrize(
    ("words", "key", "allowed"),
    [
        (["data.holdout=100000"], "data.holdout", "training rows"),
        (["data.holdout=100", "data.train_rows=101"], "data.holdout", "at most 99 of the 101"),
        (["data.holdout=1"], "data.holdout", "at least 2 rows"),
        (["data.holdout=0"], "data.holdout", "greater than or equal to 1"),
        (["data.holdout=9", "data.validation=validation"], "data.validation", "null with"),
    ],
)
def test_impossible_ones_are_refused_before_anything_is_loaded(words, key, allowed):
    with pytest.raises(ConfigError) as caught:
        resolve(["task=rte", *EMBEDDED, *words])
    found = {problem.key: str(problem) for problem in caught.value.problems}
    assert allowed in found[key]


def test_a_folder_needs_no_validation_file(tmp_path):
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.parquet").touch()
    words = ["task=rte", "method=lora", "backbone=minilm", f"data.dir={tmp_path}"]
    assert resolve([*words, "data.holdout=100"]).config.data.holdout == 100
    with pytest.raises(ConfigError, match="validation"):
        resolve(words)


def test_a_run_is_scored_on_the_holdout_alone(no_validation, do_run):
    folder = do_run("task=rte", "method=lora", "data.train_rows=null")
    row = pd.read_csv(folder / "metrics.csv").iloc[0]
    assert row["data_marks"] == "embedded data; scored on 40 rows held out of train"
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert len(predictions) == 40 and set(predictions["split"]) == {"holdout"}
    best = (predictions["best"] == predictions["label"]).mean()
    assert row["score_best"] == pytest.approx(100 * best)


def test_a_task_the_encoder_was_trained_on_is_marked():
    from lora2.run.run import _identity

    def marks(task):
        words = [f"task={task}", "method=lora", "backbone=minilm", "data.source=hub"]
        return _identity(resolve([*words, "train.max_steps=9"]).config, None)["data_marks"]

    assert "the encoder was trained on" in marks("stsb") and marks("cola") == ""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.glue import data as module
from lora2.glue.checks import GlueDataError
from lora2.glue.data import load_task, load_test
from lora2.glue.tasks import TASKS
from tests.glue.conftest import make_frame

WITH_OFFICIAL_TRAIN = ("cola", "mrpc", "stsb", "rte")


@pytest.mark.parametrize("name", WITH_OFFICIAL_TRAIN)
def test_official_folder_has_no_marks(made, name):
    folder = made(name, train=None, validation=None)
    data = load_task(name, "folder", dir=folder)
    task = TASKS[name]
    assert data.marks == ()
    assert data.revision is None
    assert list(data.train.columns) == list(task.columns)
    assert (len(data.train), len(data.validation["validation"])) == tuple(task.rows.values())
    assert data.train["label"].dtype == (np.float32 if name == "stsb" else np.int64)
    expected = make_frame(task, task.rows["train"], 0)
    for column in task.columns:
        assert data.train[column].tolist() == expected[column].tolist()


def test_mnli_has_two_validation_splits_in_order(made):
    folder = made("mnli", train_subset=7, validation_mismatched=None, validation_matched=None)
    data = load_task("mnli", "folder", dir=folder, train="train_subset")
    rows = {name: len(frame) for name, frame in data.validation.items()}
    assert list(rows.items()) == [("validation_matched", 9815), ("validation_mismatched", 9832)]
    assert data.marks == ("train_subset (7 of 392,702 rows)",)


def test_partial_files_only_by_name_and_marked(made):
    folder = made("qqp", train_subset=50, validation_unofficial=20)
    words = ["task=qqp", "method=lora", "backbone=minilm", f"data.dir={folder}"]
    with pytest.raises(ConfigError) as caught:
        resolve(words)
    wrong = {problem.key: problem.allowed for problem in caught.value.problems}
    allowed = "train_subset, validation_unofficial"
    assert wrong == {"data.train": allowed, "data.validation": allowed}
    data = load_task(
        "qqp", "folder", dir=folder, train="train_subset", validation="validation_unofficial"
    )
    assert data.marks == (
        "train_subset (50 of 363,846 rows)",
        "unofficial validation split (20 rows)",
    )
    assert list(data.validation) == ["validation_unofficial"]


def test_full_file_wins_over_a_subset_beside_it(made):
    folder = made("rte", train=None, train_subset=5, validation=None)
    data = load_task("rte", "folder", dir=folder)
    assert (len(data.train), data.marks) == (2490, ())


def test_train_rows_is_seeded_and_marked(made):
    folder = made("rte", train=None, validation=None)

    def load(seed, rows=100):
        return load_task("rte", "folder", dir=folder, train_rows=rows, seed=seed)

    first, again, other = load(1), load(1), load(2)
    assert first.marks == ("train_rows=100 of 2,490, seeded subset (seed 1)",)
    assert first.train.equals(again.train)
    assert first.train["idx"].is_monotonic_increasing
    assert first.train["idx"].nunique() == 100
    assert not first.train["idx"].equals(other.train["idx"])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert load(1, rows=2490).marks == ()


def test_fingerprint_follows_texts_and_labels_not_idx_or_file_form(made):
    folder = made("cola", train=None, validation=None)
    before = load_task("cola", "folder", dir=folder).fingerprint
    path = folder / "cola" / "train.parquet"
    frame = pd.read_parquet(path)
    frame.assign(idx=frame["idx"] + 1).to_parquet(path, compression="gzip", row_group_size=100)
    assert load_task("cola", "folder", dir=folder).fingerprint == before
    frame.assign(label=1 - frame["label"]).to_parquet(path)
    flipped = load_task("cola", "folder", dir=folder).fingerprint
    moved = frame.copy()  # a letter moves from the end of one text to the start of the next
    moved.loc[0, "sentence"], moved.loc[1, "sentence"] = "ab", "c"
    moved.to_parquet(path)
    one = load_task("cola", "folder", dir=folder).fingerprint
    moved.loc[0, "sentence"], moved.loc[1, "sentence"] = "a", "bc"
    moved.to_parquet(path)
    assert len({before, flipped, one, load_task("cola", "folder", dir=folder).fingerprint}) == 4


def test_shards_of_a_clone_are_read(made):
    folder = made("rte", train=None, validation=None)
    expected = load_task("rte", "folder", dir=folder)
    path = folder / "rte" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table[:1000], folder / "rte" / "train-00000-of-00002.parquet")
    pq.write_table(table[1000:], folder / "rte" / "train-00001-of-00002.parquet")
    path.unlink()
    assert load_task("rte", "folder", dir=folder).fingerprint == expected.fingerprint


def test_embedded_source_is_marked_and_checked(monkeypatch):
    asked = []

    def make_split(task, split):
        asked.append((task, split))
        return make_frame(TASKS[task], 12, len(asked))

    monkeypatch.setattr(module, "make_split", make_split)
    data = load_task("mnli", "embedded")
    assert data.marks == ("embedded data",)
    assert [split for _, split in asked] == list(TASKS["mnli"].rows)
    assert {len(frame) for frame in (data.train, *data.validation.values())} == {12}
    monkeypatch.setattr(module, "make_split", lambda *_: make_frame(TASKS["cola"], 3))
    with pytest.raises(GlueDataError, match="embedded mnli train lacks column premise"):
        load_task("mnli", "embedded")


DAMAGE = [
    ("rte", lambda f: f.drop(columns="sentence2"), "lacks column sentence2.*rte needs"),
    ("rte", lambda f: f.drop(columns="idx"), "lacks column idx"),
    ("rte", lambda f: f.assign(sentence1=1), "'sentence1' is int64, but rte needs text"),
    ("rte", lambda f: f.assign(label="no"), "'label' is .*string, but rte needs an integer"),
    ("rte", lambda f: f.assign(label=f["label"].astype(float)), "is double, but rte needs an int"),
    ("stsb", lambda f: f.assign(label=1), "'label' is int64, but stsb needs a float"),
    ("rte", lambda f: f.assign(label=f["label"] + 1), "run from 1 to 2, but rte's run from 0 to 1"),
    ("rte", lambda f: f.assign(label=-1), "-1 marks the test split"),
    ("stsb", lambda f: f.assign(label=f["label"] + 1), r"labels run from 1\..*from 0 to 5"),
    ("stsb", lambda f: f.assign(label=f["label"] / 5), "from .* to .*0 to 5; .* another scale"),
    ("stsb", lambda f: f.assign(label=1 + f["label"] * 0.8), "from 1.* to .*; .* another scale"),
    ("stsb", lambda f: f.assign(label=f["label"] * 0.8), "to 3.*; .* another scale"),
    ("rte", lambda f: f.assign(sentence1=f["sentence1"].where(f.index != 3)), "has 1 null values"),
    ("stsb", lambda f: f.assign(label=f["label"].where(f.index != 3)), "has 1 null values"),
    ("rte", lambda f: f[:0], "holds no rows"),
    ("rte", lambda f: f[:-1], "2,489 rows, but the official.*2,490.*data.train=train_subset"),
    ("rte", lambda f: make_frame(TASKS["mnli"], 9), "lacks column.*columns of mnli: swapped"),
    ("rte", lambda f: make_frame(TASKS["mrpc"], 3668), "3,668 rows, but the official rte"),
]


@pytest.mark.parametrize(
    ("name", "damage", "message"), DAMAGE, ids=[f"{name}: {m}" for name, _, m in DAMAGE]
)
def test_damaged_content_is_named(made, name, damage, message):
    folder = made(name, train=None, validation=5)
    path = folder / name / "train.parquet"
    damage(pd.read_parquet(path)).to_parquet(path)
    made(name, validation=None)
    with pytest.raises(GlueDataError, match=message) as error:
        load_task(name, "folder", dir=folder)
    assert str(path) in str(error.value)


def test_similarities_fill_the_range_in_a_partial_file_of_enough_rows(made):
    folder = made("stsb", train_subset=150)
    path = folder / "stsb" / "train_subset.parquet"
    frame = pd.read_parquet(path)

    def load(damaged):
        damaged.to_parquet(path)
        return load_task("stsb", "folder", dir=folder, train="train_subset", holdout=30)

    assert len(load(frame).train) == 120
    scaled = frame.assign(label=frame["label"] / 5)
    with pytest.raises(GlueDataError, match="another scale"):
        load(scaled)
    assert len(load(scaled.head(99)).train) == 69  # too few rows to tell


def test_nan_label_of_stsb_is_named(made):
    folder = made("stsb", train=None, validation=None)
    path = folder / "stsb" / "validation.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_numpy().copy()
    labels[7] = np.nan
    pq.write_table(table.set_column(2, "label", pa.array(labels)), path)
    with pytest.raises(GlueDataError, match=r"validation\.parquet.*NaN"):
        load_task("stsb", "folder", dir=folder)


def test_broken_utf8_is_named(made):
    folder = made("rte", train=None, validation=None)
    path = folder / "rte" / "train.parquet"
    table = pq.read_table(path)
    raw = pa.array([b"\xff\xfe"] * len(table))
    bad = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    pq.write_table(table.set_column(0, "sentence1", bad), path)
    with pytest.raises(GlueDataError, match=r"cannot be read as parquet.*UTF"):
        load_task("rte", "folder", dir=folder)


def test_unreadable_files_are_named(made):
    folder = made("rte", train=None, validation=None)
    path = folder / "rte" / "train.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"sentence1,sentence2\n" * 40):
        path.write_bytes(content)
        with pytest.raises(GlueDataError, match=r"train\.parquet cannot be read as parquet"):
            load_task("rte", "folder", dir=folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(GlueDataError, match=r"train\.parquet lacks column"):
        load_task("rte", "folder", dir=folder)


def test_a_split_that_is_not_there_is_named_with_the_files_that_are(made):
    folder = made("rte", train=5)
    with pytest.raises(GlueDataError, match=r"test\.parquet does not exist; .* has train\.parquet"):
        load_test("rte", "folder", folder)


def test_real_files(real):
    partial = {"qnli": {"train": "train_subset"}, "mnli": {"train": "train_subset"}}
    partial["qqp"] = {"train": "train_subset", "validation": "validation_unofficial"}
    for name, task in TASKS.items():
        data = load_task(name, "folder", dir=real, **partial.get(name, {}))
        assert len(data.marks) == len(partial.get(name, {}))
        if name not in partial:
            assert len(data.train) == task.rows["train"]
        assert len(data.fingerprint) == 64


def test_any_damage_of_a_file_is_named_or_harmless(made):
    folder = made("rte", train=None, validation=None)
    path = folder / "rte" / "train.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(60):
        content = bytearray(whole)
        where = int(rng.integers(len(content)))
        content[where : where + 8] = rng.bytes(min(8, len(content) - where))
        path.write_bytes(content)
        try:
            assert len(load_task("rte", "folder", dir=folder).train) == 2490
        except GlueDataError as error:
            named += 1
            assert str(path) in str(error)
    assert named >= 5


def test_an_infinite_score_is_named(made):
    folder = made("stsb", train=None, validation=None)
    path = folder / "stsb" / "train.parquet"
    frame = pd.read_parquet(path)
    frame.assign(label=frame["label"].where(frame.index != 3, np.float32("inf"))).to_parquet(path)
    with pytest.raises(GlueDataError, match=r"labels run from .* to inf, but stsb's run from 0"):
        load_task("stsb", "folder", dir=folder)


def test_splits_and_tasks_that_changed_places_are_named(made):
    folder = made("rte", train=None, validation=None)
    made("qnli", train_subset=9, validation=None)
    train, validation = (folder / "rte" / f"{name}.parquet" for name in ("train", "validation"))
    contents = train.read_bytes(), validation.read_bytes()
    train.write_bytes(contents[1])
    validation.write_bytes(contents[0])
    with pytest.raises(
        GlueDataError, match=r"train\.parquet has 277 rows.*2,490: it is cut, mixed"
    ):
        load_task("rte", "folder", dir=folder)
    train.write_bytes((folder / "qnli" / "validation.parquet").read_bytes())
    with pytest.raises(GlueDataError, match=r"columns of .*qnli: swapped"):
        load_task("rte", "folder", dir=folder)

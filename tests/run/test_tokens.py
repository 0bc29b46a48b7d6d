"""Tokens kept on disk are those that tokenising gives."""

from __future__ import annotations

import pytest
from datasets import Dataset

from lora2.glue.data import fingerprint, tokenize
from lora2.glue.tasks import TASKS
from lora2.run import trainer as module
from tests.glue.conftest import make_frame
from tests.glue.test_glue_tokenize import make_tokenizer

ROWS = 20


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that tokenises once and counts real tokenisations."""
    calls = []
    monkeypatch.setattr(module, "tokenize", lambda *a: calls.append(1) or tokenize(*a))

    def do(task="mnli", frame=None, tokenizer=None, length=32):
        frame = make_frame(TASKS[task], ROWS) if frame is None else frame
        tokenizer = tokenizer or make_tokenizer()
        rows = fingerprint(TASKS[task], [frame])
        folder = tmp_path / "tokens"
        return module.tokenize_once(frame, TASKS[task], tokenizer, length, folder, rows)

    do.calls = calls
    do.folder = tmp_path / "tokens"
    return do


@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_second_time_gives_the_same_without_tokenising(make, task):
    plain = tokenize(make_frame(TASKS[task], ROWS), TASKS[task], make_tokenizer(), 32)
    first, second = make(task), make(task)
    assert len(make.calls) == 1
    for rows in (first, second):
        assert rows.features == plain.features
        assert rows[:] == plain[:]


def test_a_used_tokenizer_gives_the_same_name(make):
    tokenizer = make_tokenizer()
    make(tokenizer=tokenizer)
    tokenizer("a b", truncation=True, max_length=3, padding="max_length")
    make(tokenizer=tokenizer)
    assert len(make.calls) == 1


def test_whatever_changes_the_tokens_changes_the_name(make):
    other_words = make_tokenizer()
    other_words.add_tokens(["purple"])
    other_rows = make_frame(TASKS["mnli"], ROWS, seed=1)
    other_labels = make_frame(TASKS["mnli"], ROWS).assign(label=lambda f: (f["label"] + 1) % 3)
    make()
    for change in (
        {"length": 31},
        {"tokenizer": other_words},
        {"tokenizer": make_tokenizer(segments=False)},
        {"frame": other_rows},
        {"frame": other_labels},
    ):
        before = len(make.calls)
        make(**change)
        assert len(make.calls) == before + 1, change
    assert len(list(make.folder.iterdir())) == 6


def test_what_a_killed_writer_left_is_written_again(make, monkeypatch):
    def killed(rows, path):
        path.mkdir()
        (path / "data-00000-of-00001.arrow").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", killed)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert make()[:] == make()[:]
    assert len(make.calls) == 2 and len(list(make.folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json"])
def test_a_file_cut_short_is_replaced(make, name):
    first = make()
    (path,) = make.folder.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:100])
    assert (
        make()[:]
        == tokenize(make_frame(TASKS["mnli"], ROWS), TASKS["mnli"], make_tokenizer(), 32)[:]
    )
    assert len(make.calls) == 2 and len(make()) == len(first)

"""Tokens kept on disk are those that tokenising makes, whatever happened to the file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

import lora2.run.cache as module
from lora2.glue.tasks import TASKS
from lora2.glue.tokenize import tokenize
from lora2.run.cache import tokenize_once
from tests.glue.conftest import make_frame
from tests.glue.test_glue_tokenize import make_tokenizer

ROWS = 20


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that tokenises through the cache and counts real tokenisations."""
    calls = []
    monkeypatch.setattr(module, "tokenize", lambda *a: calls.append(1) or tokenize(*a))

    def do(task="mnli", frame=None, tokenizer=None, length=32, folder=tmp_path / "tokens"):
        frame = make_frame(TASKS[task], ROWS) if frame is None else frame
        tokenizer = tokenizer or make_tokenizer()
        return tokenize_once(frame, TASKS[task], tokenizer, length, folder, worth_rows=ROWS)

    do.calls = calls
    do.folder = tmp_path / "tokens"
    return do


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_second_time_gives_the_same_without_tokenising(make, task):
    plain = tokenize(make_frame(TASKS[task], ROWS), TASKS[task], make_tokenizer(), 32)
    first, second = make(task), make(task)
    assert len(make.calls) == 1
    for rows in (first, second):
        assert rows.features == plain.features
        assert rows[:] == plain[:]


def test_a_used_tokenizer_finds_its_file_again(make):
    tokenizer = make_tokenizer()
    make(tokenizer=tokenizer)
    tokenizer("a b", truncation=True, max_length=3, padding="max_length")
    make(tokenizer=tokenizer)
    assert len(make.calls) == 1


def test_whatever_changes_the_tokens_is_another_file(make):
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


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "folder"])
def test_a_broken_file_is_made_anew(make, damage):
    plain = make()
    path = the_file(make.folder)
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({
            "cut": content[:-9],
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
        }[damage])  # fmt: skip
    assert make()[:] == plain[:]
    assert len(make.calls) == 2
    assert damage == "folder" or the_file(make.folder).read_bytes() == content


def test_a_folder_that_cannot_be_written_costs_only_the_cache(make, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert len(make(folder=tmp_path / "file" / "tokens")) == ROWS
    assert "could not be kept" in caplog.text


def test_few_rows_are_not_kept(make):
    make(frame=make_frame(TASKS["mnli"], ROWS - 1))
    assert not make.folder.exists()


def test_writers_at_the_same_time_do_not_meet(make, monkeypatch, caplog):
    plain = make()
    the_file(make.folder).unlink()
    tokenised, write = threading.Barrier(4), module._write

    def write_together(*arguments):
        tokenised.wait(timeout=20)  # none of the four finds what another has written
        write(*arguments)

    monkeypatch.setattr(module, "_write", write_together)
    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.text == ""
    assert the_file(make.folder).name.endswith(".arrow")
    assert make()[:] == plain[:] and len(make.calls) == 5


def test_what_a_killed_writer_left_is_gone_after_the_next(make, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: os.kill(os.getpid(), signal.SIGKILL))
        child = multiprocessing.get_context("fork").Process(target=make)
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL and the_file(make.folder).name.startswith(".")
    assert make()[:] == make()[:] and the_file(make.folder).name.endswith(".arrow")

"""Several sweeps and reports on one results folder: no run twice, none lost, no half row."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pandas as pd
import pytest

from lora2.records import store
from lora2.sweep.worker import Order, carry_out
from tests.faults import crowd
from tests.sweep.sweep_fakes import job, ran

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(1, 31)


def collected(folder: Path):
    def read() -> pd.DataFrame | None:
        try:
            return store.collect(folder)
        except store.StoreError as error:
            assert "no runs in" in str(error)
            return None

    return read


def from_file(folder: Path):
    """A reader that knows only the file that the others write."""

    def read() -> pd.DataFrame | None:
        path = folder / "runs.csv"
        return pd.read_csv(path) if path.is_file() else None

    return read


READERS = {"one report": collected, "another": collected, "a reader of runs.csv": from_file}


def _watch(folder: Path, name: str, ready: Barrier) -> None:
    ready.wait()
    frames = crowd.read_until((folder / "over").exists, READERS[name](folder))
    (folder / name).write_text(str(frames))


def test_a_report_made_while_runs_are_published_reads_whole_rows(tmp_path):
    read, reads = collected(tmp_path), threading.Semaphore(0)

    def counted() -> pd.DataFrame | None:
        frame = read()
        if frame is not None:
            reads.release()
        return frame

    def publish_all() -> None:
        for seed in SEEDS:
            carry_out(Order(job(tmp_path, seed).resolved.config), crowd.run, crowd.record)
            if seed % 2 == 0:  # a slow machine must not publish past its reader
                assert reads.acquire(timeout=30)
        (tmp_path / "repaired").touch()
        for seed in crowd.FAILS_AT_FIRST:  # their folders are replaced
            carry_out(Order(job(tmp_path, seed).resolved.config), crowd.run, crowd.record)

    publishing = threading.Thread(target=publish_all)
    publishing.start()
    frames = crowd.read_until(lambda: not publishing.is_alive(), counted)
    publishing.join()
    assert frames > 10
    assert list(store.collect(tmp_path)["status"]) == ["finished"] * len(SEEDS)


@pytest.mark.slow
def test_three_sweeps_at_once_do_every_run_once_while_reports_are_made(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(1 + len(READERS))
    readers = [context.Process(target=_watch, args=(tmp_path, name, ready)) for name in READERS]
    for process in readers:
        process.start()
    ready.wait()
    for times in (1, 2):  # what failed is repeated by the second round alone
        sweeps = [context.Process(target=crowd.sweep, args=(tmp_path, SEEDS, 2)) for _ in range(3)]
        for process in sweeps:
            process.start()
        for process in sweeps:
            process.join(timeout=300)
        assert [process.exitcode for process in sweeps] == [0, 0, 0]
        again = dict.fromkeys(crowd.FAILS_AT_FIRST, times)
        assert Counter(ran(tmp_path)) == Counter({**dict.fromkeys(SEEDS, 1), **again})
        (tmp_path / "repaired").touch()
    (tmp_path / "over").touch()
    for process in readers:
        process.join(timeout=300)
    assert [process.exitcode for process in readers] == [0, 0, 0]
    frames = {name: int((tmp_path / name).read_text()) for name in READERS}
    assert min(frames.values()) > 5, frames
    assert list(store.collect(tmp_path)["status"]) == ["finished"] * len(SEEDS)
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "runs").glob(".*"))


@pytest.mark.slow
def test_the_command_given_twice_at_once_shares_the_runs(tmp_path):
    """A run done twice would end in an error: a finished folder is never written again."""
    words = ["table=4", "tasks=mrpc", "profile=embedded", "workers=1", "train.max_steps=12"]
    command = [sys.executable, str(ROOT / "scripts/reproduce.py"), *words, "train.eval_steps=6"]
    command += [f"results.dir={tmp_path}"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipe) for _ in range(2)]
    texts = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert all("| all six |" in output for output, _ in texts)
    assert len(list(tmp_path.glob("runs/*/status"))) == 4
    assert list(store.read(tmp_path)["status"]) == ["finished"] * 4
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["tokens"]  # no lock

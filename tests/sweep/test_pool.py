from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from lora2.records import store
from lora2.records.files import hold
from lora2.records.run_folder import lock_file, log_file, run_dir
from lora2.sweep import pool as sweep
from lora2.sweep import worker
from lora2.sweep.pool import Pool, Progress, plan_workers, unfinished
from lora2.sweep.worker import Order, carry_out
from tests.sweep import sweep_fakes as fakes
from tests.sweep.sweep_fakes import job

TIMING = ["seconds_per_step", "train_seconds", "peak_memory_mb"]


def one_sweep(jobs, workers: int = 1):
    pool = Pool([{}] * workers, run=fakes.run, record=fakes.record)
    left = unfinished(jobs)
    outcomes = pool.do(left, already=len(jobs) - len(left))
    return {outcome.name: outcome for outcome in outcomes}


def test_finished_runs_are_not_repeated_and_each_has_a_log(tmp_path):
    jobs = [job(tmp_path, seed) for seed in (1, 2, 3)]
    found = one_sweep(jobs[:2])
    assert {one.state for one in found.values()} == {"finished"}
    assert list(one_sweep(jobs)) == [jobs[2].name]
    assert unfinished(jobs) == [] and one_sweep(jobs) == {}
    assert fakes.ran(tmp_path) == [1, 2, 3]
    for one in jobs:
        log = log_file(one.resolved.config).read_text()
        assert log == f"this is run {one.resolved.config.seed}\n"
    assert not list((tmp_path / "work").iterdir())  # no lock is left behind


def test_a_run_that_kills_its_process_costs_only_itself(tmp_path):
    seeds = (fakes.DIES, fakes.DIES_ONCE, fakes.FAILS, 1, 2, 3)
    jobs = {seed: job(tmp_path, seed) for seed in seeds}
    found = one_sweep(list(jobs.values()), workers=2)
    states = {seed: found[one.name].state for seed, one in jobs.items()}
    lost = {fakes.DIES: "failed", fakes.FAILS: "failed"}
    assert states == {seed: lost.get(seed, "finished") for seed in seeds}
    assert Counter(fakes.ran(tmp_path)) == {**dict.fromkeys(seeds, 1), 101: 2, 102: 2}
    assert found[jobs[fakes.FAILS].name].message == "ValueError: no such luck"
    assert "signal 9" in found[jobs[fakes.DIES].name].message
    assert (tmp_path / "deaths.txt").read_text().startswith(f"{fakes.DIES} its process died 2")
    (tmp_path / "repaired").touch()
    again = one_sweep(list(jobs.values()))
    assert {one.state for one in again.values()} == {"finished"} and len(again) == 2
    assert unfinished(list(jobs.values())) == []


def test_stopped_and_resumed_sweep_gives_the_same_runs_csv(tmp_path, monkeypatch):
    def frame(folder: Path):
        runs = store.collect(folder).drop(columns="seconds_per_step")
        return runs.assign(config=runs["config"].str.replace(str(folder), "", regex=False))

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = [job(tmp_path / "a", seed) for seed in (1, 2, 3)]
    one_sweep(straight)
    halted = [job(tmp_path / "b", seed) for seed in (1, 2, 3)]
    count = Progress.end_of

    def interrupt(self, job, outcome):
        count(self, job, outcome)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "end_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            one_sweep(halted)
    assert not multiprocessing.active_children()
    assert 1 <= len(unfinished(halted)) < 3
    one_sweep(halted)
    expected, found = frame(tmp_path / "a"), frame(tmp_path / "b")
    assert len(found) == 3 and found.equals(expected)


def _sweep_in(folder: Path) -> None:
    one_sweep([job(folder, seed) for seed in (fakes.SLOW, 1, 2, 3)])


def test_two_sweeps_at_once_do_every_run_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_sweep_in, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(fakes.ran(tmp_path)) == [1, 2, 3, fakes.SLOW]
    assert len(store.collect(tmp_path)) == 4


def test_a_run_held_elsewhere_is_left_alone_or_waited_for(tmp_path):
    config = job(tmp_path).resolved.config
    lock = lock_file(config)
    with hold(lock, wait=False) as held:
        assert held
        assert carry_out(Order(config), fakes.run, fakes.record).state == "busy"
        found = []
        waiting = threading.Thread(
            target=lambda: found.append(
                carry_out(Order(config, wait=True), fakes.run, fakes.record)
            )
        )
        waiting.start()
        fakes.publish(config)
    waiting.join(timeout=10)
    assert found[0].state == "finished" and fakes.ran(tmp_path) == []
    assert not lock.exists()


def test_what_failed_elsewhere_meanwhile_is_not_tried_at_once_again(tmp_path):
    config = job(tmp_path).resolved.config
    fakes.publish(config, "failed")
    age = (run_dir(config) / "status").stat().st_mtime
    just_now = Order(config, wait=True, since=age - 5)
    assert carry_out(just_now, fakes.run, fakes.record).state == "failed"
    assert fakes.ran(tmp_path) == []
    long_ago = Order(config, wait=True, since=age + 5)
    assert carry_out(long_ago, fakes.run, fakes.record).state == "finished"
    assert fakes.ran(tmp_path) == [1]


def test_who_waited_locks_the_file_that_others_will_find(tmp_path):
    path, seen = tmp_path / "lock", []

    def second():
        with hold(path, wait=True), hold(path, wait=False) as third:
            seen.append((path.exists(), third))

    waiting = threading.Thread(target=second)
    with hold(path, wait=False):
        waiting.start()
        time.sleep(0.2)  # it has opened the file that is removed now
    waiting.join(timeout=10)
    assert seen == [(True, False)]


@pytest.mark.parametrize(
    ("gpus", "profile", "wanted", "count", "devices"),
    [
        (0, "embedded", None, 4, [None]),
        (0, "paper", None, 1, [None]),
        (2, "paper", None, 2, ["0", "1"]),
        (2, "paper", 3, 3, ["0", "1"]),
        (1, "embedded", None, 4, ["0"]),
        (0, "embedded", 99, 6, [None]),
    ],
)
def test_workers_share_devices_and_cores(
    tmp_path, monkeypatch, gpus, profile, wanted, count, devices
):
    monkeypatch.setattr(sweep, "gpu_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [job(tmp_path, seed) for seed in range(6)]
    for one in jobs:
        object.__setattr__(one.resolved.config.backbone, "profile", profile)
    try:
        planned = plan_workers(jobs, wanted)
    finally:
        object.__setattr__(jobs[0].resolved.config.backbone, "profile", "embedded")
    assert len(planned) == count
    assert planned[0]["OMP_NUM_THREADS"] == str(max(1, 4 // count))
    found = [one.get("CUDA_VISIBLE_DEVICES") for one in planned]
    assert found == [devices[i % len(devices)] for i in range(count)]


def test_workers_use_the_gpus_that_are_visible(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "gpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    planned = plan_workers([job(tmp_path, seed) for seed in (1, 2)], 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in planned] == ["5", "7"]


def test_a_worker_ends_when_its_parent_is_gone(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    ours.send(Order(job(tmp_path).resolved.config))
    ours.close()
    worker.serve(theirs, {}, fakes.run, fakes.record)
    assert fakes.ran(tmp_path) == [1]


# Python runs this file at its start where PYTHONPATH names its folder, in the workers too.
HOLD = """
import sys, time
from pathlib import Path

def hold(event, arguments):
    '''Stop at the second checkpoint of the run after the first.'''
    second = event == "open" and "checkpoint-8" in str(arguments[0])
    while second and any(Path({results!r}).glob("runs/*/status")):
        time.sleep(0.1)

sys.addaudithook(hold)
"""


def _reproduce(results: Path, **how: object) -> subprocess.Popen[str]:
    """Start a small Table 3 by one worker; its runs save a checkpoint every four steps."""
    script = Path(__file__).parents[2] / "scripts" / "reproduce.py"
    words = ["table=3", "profile=embedded", "tasks=mrpc", "rows=uv,UV,PQ", "train.max_steps=16",
             "train.eval_steps=4", "train.save_steps=4"]  # fmt: skip
    command = [sys.executable, str(script), *words, "workers=1", f"results.dir={results}"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **pipe, **how)


def _wait_for_second_run(results: Path) -> None:
    """Wait until one run is finished and another has a whole checkpoint."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        done = {path.parent.name for path in results.glob("runs/mrpc-*/status")}
        last_files = results.glob("work/*/checkpoint-*/recorder.npz")  # of each checkpoint
        if done and {path.parents[1].name for path in last_files} - done:
            return
        time.sleep(0.02)
    raise AssertionError("no second run in time")


def _runs_without_times(results: Path) -> pd.DataFrame:
    frame = store.collect(results).drop(columns=["config", *TIMING])
    return frame.sort_values("run", ignore_index=True)


@pytest.mark.slow
def test_a_real_sweep_stopped_half_way_ends_with_the_same_runs_csv(tmp_path):
    """Ctrl-C, as a terminal sends it to workers too, in the middle of the second of three runs."""
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    straight = _reproduce(whole)
    said, _ = straight.communicate(timeout=400)
    assert straight.returncode == 0, said
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(results=str(halted)))
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    hooked = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = _reproduce(halted, start_new_session=True, env=hooked)
    _wait_for_second_run(halted)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert "repeat the same command to continue" in output
    assert len(list(halted.glob("runs/mrpc-*/status"))) == 1
    again = _reproduce(halted)
    said, _ = again.communicate(timeout=400)
    assert "3 runs, 1 finished already" in said and again.returncode == 0, said
    logs = "".join(path.read_text() for path in halted.glob("logs/*.log"))
    assert logs.count("resumes from") == 1
    pd.testing.assert_frame_equal(_runs_without_times(halted), _runs_without_times(whole))
    third = _reproduce(halted)
    said, _ = third.communicate(timeout=400)
    assert "3 runs, 3 finished already" in said and third.returncode == 0

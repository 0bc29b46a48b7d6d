"""A full disk stops a run with one clear message, costs no result, and is gone on from."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lora2.config.load import resolve
from lora2.records.files import DiskFull, is_disk_full
from lora2.records.run_folder import status
from lora2.run import run as module
from tests.faults import crash
from tests.faults.disks import fill, free, small_disk
from tests.faults.test_resume import METHODS, assert_equal
from tests.run.test_run import assert_same_run
from tests.sweep.test_request import script
from tests.tables.test_report import made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def do_run(folder: Path, *words: str) -> Path:
    words = words or METHODS["lora2"]
    config = resolve([*crash.TINY, *words, f"results.dir={folder}"]).config
    return module.run(config, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of the run that nothing stopped."""
    return do_run(tmp_path_factory.mktemp("whole"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filling(function, disk: Path, at: int):
    """Return ``function``, but the disk is full from its call number ``at`` on."""
    calls = []

    def full(*args, **kwargs):
        calls.append(None)
        if len(calls) == at:
            fill(disk)
        return function(*args, **kwargs)

    return full


@pytest.mark.parametrize(
    ("where", "name", "at", "checkpoints"),
    [
        (torch, "save", 6, ["checkpoint-2"]),  # the optimiser's state in the second one
        (module.store, "write_run", 1, ["checkpoint-6"]),  # the metrics
    ],
)
def test_a_run_goes_on_after_room_is_made(disk, whole, monkeypatch, where, name, at, checkpoints):
    earlier = do_run(disk, "method=bitfit", "train.max_steps=2")
    before = contents(earlier)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, filling(getattr(where, name), disk, at))
        with pytest.raises(DiskFull) as caught:
            do_run(disk)
    for part in (f"no space to write in {disk} (0 MiB free", "Free some space", "it resumes"):
        assert part in str(caught.value)
    assert contents(earlier) == before and status(earlier) == "finished"
    assert [path.name for path in (disk / "runs").iterdir()] == [earlier.name]
    assert [path.name for path in disk.glob("work/*/checkpoint-*")] == checkpoints
    free(disk)
    assert_same_run(whole, do_run(disk))
    assert not list(disk.glob("work/*/checkpoint-*"))


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("basic_ios::clear: iostream error", True),  # torch.save, on a tmpfs
        ("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0", True),  # torch.save
        ("Error while serializing: I/O error: No space left on device (os error 28)", True),
        ("Error while serializing: I/O error: Permission denied (os error 13)", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_told_from_other_errors(text, full):
    wrapped = ValueError("a run failed")
    wrapped.__cause__ = RuntimeError(text)
    assert is_disk_full(RuntimeError(text)) is full and is_disk_full(wrapped) is full


def test_tables_stay_as_they_were(disk, capsys):
    made(disk, rows=("uv", "all"))
    report = script("report")
    words = [str(disk), "profile=embedded", "table=3"]
    assert report.main(words) == 0
    files = [path for path in disk.iterdir() if path.is_file()]
    before = {path.name: path.read_bytes() for path in files}
    assert {"runs.csv", "table3.md", "table3.csv"} <= before.keys()
    made(disk, rows=("UV",))
    capsys.readouterr()
    fill(disk)
    assert report.main(words) == 1
    shown = capsys.readouterr()
    assert f"no space to write in {disk}" in shown.err and "Traceback" not in shown.err
    found = {path.name: path.read_bytes() for path in files}
    assert found == before and not list(disk.glob(".*"))
    free(disk)
    assert report.main(words) == 0
    assert len((disk / "runs.csv").read_text().splitlines()) == 1 + 6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["tmpfs", "limit"])
def test_full_at_any_file_operation_is_said_and_gone_on_from(tmp_path, how):
    """``limit`` lets no file grow instead: what can be had without the right to mount."""
    words = METHODS["lora2"]
    operations = crash.run(*words, into=tmp_path / "whole")
    assert operations is not None
    expected = crash.outcome(tmp_path / "whole")
    refusals = 0
    for at in range(1, operations + 1, 6):
        folder = tmp_path / str(at)
        if how == "limit":
            refusals += _full_then_room(folder, words, at, how, expected)
        else:
            with small_disk(folder) as disk:
                refusals += _full_then_room(disk, words, at, how, expected)
    assert refusals > operations / 6 / 2  # the rest needs no room: removing, renaming


def _full_then_room(folder: Path, words, at: int, how: str, expected) -> bool:
    message = crash.run_until_full(*words, into=folder, at=at, how=how)
    if how == "tmpfs":
        free(folder)
    if message:
        assert message.startswith("DiskFull: no space to write in"), (at, message)
        assert not list(folder.glob("runs/*")), at
        assert crash.run(*words, into=folder) is not None, at
    assert_equal(crash.outcome(folder), expected)
    return bool(message)


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_stops_and_goes_on(tmp_path):
    words = ["table=4", "tasks=mrpc", "rows=qk,qv", "profile=embedded", "workers=1"]
    lengths = ["train.max_steps=20", "train.eval_steps=5", "train.save_steps=5"]
    with small_disk(tmp_path / "disk") as disk:
        command = [sys.executable, str(ROOT / "scripts/reproduce.py"), *words, *lengths]
        command += [f"results.dir={disk}"]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipe) as process:
            while not list(disk.glob("runs/*/status")) and process.poll() is None:
                time.sleep(0.05)
            fill(disk)
            output, errors = process.communicate(timeout=1200)
        assert process.returncode == 1, errors
        assert f"no space to write in {disk}" in errors and "Traceback" not in errors
        assert "runs were not started: the disk is full" in output
        finished = {path.parent: contents(path.parent) for path in disk.glob("runs/*/status")}
        assert len(finished) == len(list((disk / "runs").iterdir())) == 1
        free(disk)
        again = subprocess.run(command, timeout=1200, **pipe)
        assert again.returncode == 0, again.stderr
        assert "2 runs, 1 finished already" in again.stdout and "| query, key |" in again.stdout
        assert all(contents(folder) == before for folder, before in finished.items())
        assert len(list(disk.glob("runs/*/status"))) == 2

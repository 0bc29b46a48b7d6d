"""One run in a process of its own, to which something happens at a chosen file operation.

It dies by SIGKILL, or from then on there is no space to write.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.faults.disks import fill

# Epochs of 3 steps, the last of 4 rows: checkpoints at 2, 4 (in an epoch) and 6 (at its end).
TINY = ("task=mrpc", "backbone=embedded", "data.train_rows=44", "data.holdout=24",
        "train.batch_size=8", "train.max_steps=8", "train.eval_steps=2", "train.save_steps=2",
        "train.cls_dropout=0.1")  # fmt: skip
TIMING = ("train_seconds", "seconds_per_step", "peak_memory_mb")
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
CONTEXT = multiprocessing.get_context("forkserver")  # imports torch once for all children
CONTEXT.set_forkserver_preload(["lora2.run.run", "tests.faults.crash"])


class Watch:
    """Counts what a process does to files under ``root``; calls ``act`` before number ``at``."""

    def __init__(self, root: Path, at: int | None, act: Callable[[], None]):
        self.root, self.at, self.act, self.count = str(root), at, act, 0

    def install(self) -> None:
        """Watch Python's own file operations, and the libraries that write without Python."""
        import safetensors.torch

        sys.addaudithook(self._hear)
        torch.save = self._tearing(torch.save, 1)
        safetensors.torch.serialize_file = self._tearing(safetensors.torch.serialize_file, 1)

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else 0
            if writes and self._ours(path, -1):
                self.tick()
        elif event in OPERATIONS and self._ours(args[0], args[-1]):
            self.tick()

    def _ours(self, path: Any, directory: Any) -> bool:
        if isinstance(directory, int) and directory >= 0:  # what rmtree removes, by descriptor
            return os.readlink(f"/proc/self/fd/{directory}").startswith(self.root)
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)

    def _tearing(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        """Count ``write`` twice; a process that dies at the second leaves half of its file."""

        def torn(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            done = write(*args, **kwargs)
            target = args[place]
            dies = self.act is die and self.count + 1 == self.at
            if dies and os.path.isfile(target):
                os.truncate(target, os.path.getsize(target) // 2)
            self.tick()
            return done

        return torn


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def let_no_file_grow() -> None:
    """Have every write to a file of the process fail, as over a quota."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def _child(
    words: tuple[str, ...],
    results: Path,
    at: int | None,
    act: Callable[[], None],
    answer: Connection,
) -> None:
    from lora2.config.load import resolve
    from lora2.records import run_folder
    from lora2.run import run as module

    silence = os.open(os.devnull, os.O_WRONLY)  # the tests' own output may be a file, and limited
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    watch = Watch(results, at, act)
    watch.install()
    # The last checkpoint stays, to be compared.
    module.remove_checkpoints = run_folder.remove_checkpoints = lambda work: None
    config = resolve([*words, f"results.dir={results}"]).config
    try:
        with run_folder.hold_run(config, wait=False) as held:  # as the commands do
            assert held
            module.run(config, progress=False)
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send(watch.count)


def _run(words: tuple[str, ...], into: Path, at: int | None, act: Callable[[], None]) -> int | str:
    """Return the number of file operations, or the error that ended the run; EOFError: it died."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=((*TINY, *words), into, at, act, theirs))
    with pytest.MonkeyPatch.context() as patch:  # for the server, which starts with the first child
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def run(*words: str, into: Path, die_at: int | None = None) -> int | None:
    """Do one run; return how many file operations it took, or None if it was killed before."""
    try:
        operations = _run(words, into, die_at, die)
    except EOFError:
        assert die_at is not None
        return None
    assert isinstance(operations, int), operations
    return operations


def run_until_full(*words: str, into: Path, at: int, how: str) -> str:
    """Do one run, without room from file operation ``at`` on; return its error, "" if it ended.

    ``how``: "tmpfs", the disk mounted at ``into`` is filled; "limit", no file may grow.
    """
    answer = _run(words, into, at, partial(fill, into) if how == "tmpfs" else let_no_file_grow)
    return answer if isinstance(answer, str) else ""


def outcome(results: Path) -> dict[str, Any]:
    """Return all that the one run in ``results`` made, without times, places and commits.

    Raises:
        AssertionError, ValueError: something else was left behind.
    """
    (folder,) = (results / "runs").iterdir()
    assert {path.name for path in (results / "work").iterdir()} == {folder.name, "tokens"}
    (checkpoint,) = (results / "work" / folder.name).iterdir()
    row = pd.read_csv(folder / "metrics.csv").drop(columns=[*TIMING, "commit", "dirty"])
    found: dict[str, Any] = {"metrics": row.to_csv()}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("metrics.csv", "config.yaml"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    for path in sorted(checkpoint.rglob("*")):
        if path.name not in ("training_args.bin", "trainer_state.json", "recorder.npz"):
            found[f"checkpoint/{path.name}"] = path.read_bytes()
    # Python's own generator is left out: libraries such as rich draw from it when first imported,
    # which a resumed process does at another moment; training draws from numpy and torch alone.
    random_states = torch.load(checkpoint / "rng_state.pth", weights_only=False)
    found["checkpoint/rng_state.pth"] = {
        "numpy": repr(random_states["numpy"]), "torch": random_states["cpu"].numpy().tobytes(),
    }  # fmt: skip
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["log_history"] = [_untimed(entry) for entry in state["log_history"]]
    found["trainer_state"] = state
    with np.load(checkpoint / "recorder.npz") as saved:
        found |= {"best": saved["best"].tobytes(), "last": saved["last"].tobytes()}
        found["recorder"] = _untimed(json.loads(str(saved["plain"])))
    return found


def _untimed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if not k.endswith(("runtime", "second", "seconds"))}

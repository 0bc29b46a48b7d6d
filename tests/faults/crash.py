"""One run in a process of its own that dies by SIGKILL at a chosen one of its file operations."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

# Epochs of 3 steps, the last of 4 rows: checkpoints at 2, 4 (in an epoch) and 6 (at its end).
TINY = ("task=mrpc", "backbone=embedded", "data.train_rows=20", "train.batch_size=8",
        "train.max_steps=8", "train.eval_steps=2", "train.save_steps=2", "train.cls_dropout=0.1",
        )  # fmt: skip
TIMING = ("train_seconds", "seconds_per_step", "peak_memory_mb")
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
CONTEXT = multiprocessing.get_context("forkserver")  # imports torch once for all children
CONTEXT.set_forkserver_preload(["lora2.experiment.run", "tests.faults.crash"])


class Death:
    """Counts what a process does to the files under ``root`` and kills it before number ``at``."""

    def __init__(self, root: Path, at: int | None):
        self.root, self.at, self.count = str(root), at, 0

    def install(self) -> None:
        """Watch Python's own file operations, and the libraries that write without Python."""
        import safetensors.torch

        sys.addaudithook(self._hear)
        torch.save = self._tearing(torch.save, 1)
        safetensors.torch.serialize_file = self._tearing(safetensors.torch.serialize_file, 1)

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

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
        """Let ``write`` leave half of its file where the process dies during it."""

        def torn(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            done = write(*args, **kwargs)
            target = args[place]
            if self.count + 1 == self.at and os.path.isfile(target):
                os.truncate(target, os.path.getsize(target) // 2)
            self.tick()
            return done

        return torn


def _child(words: tuple[str, ...], results: Path, die_at: int | None) -> None:
    from lora2.experiment import run as module
    from lora2.experiment.config import resolve

    torch.set_num_threads(1)
    results.mkdir(parents=True, exist_ok=True)
    death = Death(results, die_at)
    death.install()
    module._over = lambda work: None  # the last checkpoint stays, to be compared
    config = resolve([*words, f"results.dir={results}"]).config
    module.run(config, progress=False)
    (results / "operations").write_text(str(death.count))


def run(*words: str, into: Path, die_at: int | None = None) -> int | None:
    """Do one run; return how many file operations it took, or None if it died before its end."""
    process = CONTEXT.Process(target=_child, args=((*TINY, *words), into, die_at))
    with pytest.MonkeyPatch.context() as patch:  # for the server, which starts with the first child
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return int((into / "operations").read_text()) if process.exitcode == 0 else None


def outcome(results: Path) -> dict[str, Any]:
    """Return all that the one run in ``results`` made, without times, places and commits."""
    (folder,) = (results / "runs").iterdir()
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

"""A training step of this code and of an earlier revision's, in turn: before and after."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lora2.bench.methods import METHODS
from lora2.bench.record import Row, times
from lora2.bench.shape import Shape
from lora2.bench.step import interleave
from lora2.bench.steps import named

COMPARED = ("lora-r8", "lora2-k1", "lora2-k8")
REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = "lora2/bench/step.py"  # with what CHILD imports; older revisions have no bench
# Runs with either code: builds the methods, then answers a line a request on a pipe.
CHILD = """
import json, sys, time, warnings
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
import torch
from lora2.bench.methods import METHODS
from lora2.bench.shape import Shape
from lora2.bench.step import build, settle
asked = json.loads(sys.stdin.readline())
torch.set_num_threads(asked["threads"])
# As own_clock in step.py, which an earlier revision may lack.
alone = asked["threads"] == 1 and asked["shape"]["device"] == "cpu"
clock = time.process_time if alone else time.perf_counter
shape = Shape(**asked["shape"])
base, batch = shape.base(), shape.full_batch()
steppers = {row: build(base, METHODS[row], shape.precision) for row in asked["methods"]}
print("ready", flush=True)
for line in sys.stdin:
    verb, row = line.split()
    if verb == "step":
        settle()
        started = clock()
        steppers[row].step(batch)
        settle()
        print(clock() - started, flush=True)
    else:
        counts = steppers[row].counts(batch)
        print(len(counts.kernels), len(counts.syncs), flush=True)
"""
Ask = Callable[[str], str]


def commit_of(revision: str) -> str | None:
    """Return the commit, 12 digits, or None where git knows no such revision with a bench."""
    try:
        _git("cat-file", "-e", f"{revision}:{NEEDED}")
        return _git("rev-parse", f"{revision}^{{commit}}").decode()[:12]
    except (OSError, subprocess.CalledProcessError):
        return None


def measure(
    shape: Shape, commit: str, methods: Sequence[str], threads: int, rounds: int, warm_up: int
) -> list[Row]:
    """Return a row for each code and method; ``ratio_to_then`` is to the same method of ``commit``.

    Each code has a process of its own, and only one of them steps at a time.
    """
    asked = {"shape": dataclasses.asdict(shape), "methods": list(methods), "threads": threads}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        unpack(commit, Path(folder))
        codes = {commit: Path(folder), "this": REPOSITORY}
        ask = {code: stack.enter_context(_child(path, asked)) for code, path in codes.items()}
        turns = {f"{code} {row}": (code, row) for row in methods for code in codes}
        taken: dict[str, list[float]] = {name: [] for name in turns}
        actions = {
            name: lambda _, name=name, code=code, row=row: taken[name].append(
                float(ask[code](f"step {row}"))
            )
            for name, (code, row) in turns.items()
        }
        interleave(actions, shape.device, rounds, warm_up)  # its own clock only sees that it waits
        seconds = {name: own[warm_up:] for name, own in taken.items()}
        counts = {name: ask[code](f"count {row}").split() for name, (code, row) in turns.items()}
    rows: list[Row] = []
    for name, (code, row) in turns.items():
        bases = {"lora": seconds.get(f"{code} lora-r8"), "then": seconds[f"{commit} {row}"]}
        kernels, syncs = map(int, counts[name])
        measured = {**times(seconds[name], bases), "kernels": kernels, "syncs": syncs}
        rows.append({"code": code, **shape.columns(), "tokens": shape.tokens,
                     **named(METHODS[row]), **measured})  # fmt: skip
    return rows


def unpack(commit: str, folder: Path) -> None:
    """Write the package as it was at ``commit`` into ``folder``."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, "lora2"))) as archive:
        archive.extractall(folder, filter="data")


@contextlib.contextmanager
def _child(path: Path, asked: dict[str, object]) -> Iterator[Ask]:
    """Start a process with the code in ``path``; yield what sends it a line and returns another.

    Raises:
        RuntimeError: it ended; its own words are on standard error.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], env={**os.environ, "PYTHONPATH": str(path)},
        cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    into, out = process.stdin, process.stdout

    def ask(line: str) -> str:
        print(line, file=into, flush=True)
        if not (answer := out.readline()):
            raise RuntimeError(f"the process with the code in {path} ended: see its words above")
        return answer

    try:
        ask(json.dumps(asked))
        yield ask
    finally:
        process.kill()
        process.wait()
        into.close()
        out.close()


def _git(*words: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], capture_output=True, check=True
    ).stdout

"""Do runs one after another in a worker process, each under its lock and with its own log.

Nothing heavy is imported here: a worker sets its device and threads before torch is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from lora2.config.problems import ConfigError
from lora2.config.schema import RunConfig, run_name
from lora2.records.files import explain_full_disk, is_disk_full
from lora2.records.run_folder import (
    hold_run,
    log_file,
    newest_checkpoint,
    run_dir,
    status_of,
    work_dir,
)

LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW  # never through a link
State = Literal["finished", "failed", "diverged", "busy"]
Run = Callable[[RunConfig], object]
Record = Callable[[RunConfig, str], None]


@dataclasses.dataclass(frozen=True)
class Order:
    config: RunConfig
    wait: bool = False  # while another process does it
    died: str | None = None  # the run is not repeated but recorded as failed for this reason
    since: float = 0.0  # epoch seconds: a run that failed later was just tried by another process


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    state: State
    message: str = ""
    disk_full: bool = False  # nothing can be written now, so no other run should be started


def train(config: RunConfig) -> object:
    """Do one run, from its last checkpoint if there is one."""
    from lora2.run.run import run

    if (last := newest_checkpoint(work_dir(config))) is not None:
        print(f"resumes from {last}", flush=True)
    return run(config, progress=False)


def record_death(config: RunConfig, reason: str) -> None:
    """Write the run folder of a run whose process died before writing it."""
    from lora2.run.run import record_failure

    record_failure(config, "failed", ChildProcessError(reason))


def serve(connection: Connection, environment: Mapping[str, str], run: Run, record: Record) -> None:
    """Carry out orders until None comes or the parent is gone; send an ``Outcome`` for each."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment)
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while (order := connection.recv()) is not None:
            connection.send(carry_out(order, run, record))
            if not gc.get_freeze_count():  # the first run imported half a million objects
                gc.collect()
                gc.freeze()  # the collections of later runs skip them


def carry_out(order: Order, run: Run, record: Record) -> Outcome:
    """Do an order unless another process is doing it, or it is done already."""
    config, name = order.config, run_name(order.config)
    log, results = log_file(config), Path(config.results.dir)
    try:
        with explain_full_disk(results), hold_run(config, wait=order.wait) as held:
            if not held:
                return Outcome(name, "busy")
            state = status_of(config)
            if state == "finished":
                return Outcome(name, state)
            if state is not None and (run_dir(config) / "status").stat().st_mtime > order.since > 0:
                return Outcome(name, _failure(config), f"see {log}")
            log.parent.mkdir(parents=True, exist_ok=True)
            with _output_to(log):
                return _attempt(order, run, record)
    except OSError as error:  # not even its lock or its log could be written
        return Outcome(name, "failed", _first_line(error), is_disk_full(error))


def _attempt(order: Order, run: Run, record: Record) -> Outcome:
    name = run_name(order.config)
    try:
        with explain_full_disk(Path(order.config.results.dir)):
            if order.died is not None:
                record(order.config, order.died)
                return Outcome(name, "failed", order.died)
            run(order.config)
    except Exception as error:  # one run's failure must not cost the others
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        return Outcome(name, _failure(order.config), _first_line(error), is_disk_full(error))
    return Outcome(name, "finished")


def _failure(config: RunConfig) -> State:
    return "diverged" if status_of(config) == "diverged" else "failed"


def _first_line(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return "; ".join(map(str, error.problems))
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirect the file descriptors of stdout and stderr, which libraries write to, to a file."""

    def flush() -> None:
        with contextlib.suppress(OSError):  # on a full disk, the rest goes to the console
            sys.stdout.flush()
            sys.stderr.flush()

    flush()
    handle, saved = os.open(path, LOG_FLAGS, 0o644), [os.dup(1), os.dup(2)]
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        yield
    finally:
        flush()
        for number, before in enumerate(saved, start=1):
            os.dup2(before, number)
            os.close(before)

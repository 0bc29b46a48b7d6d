"""A sweep from a script's point of view: what is left, done here, and said when it is over."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from lora2.config.problems import ConfigError
from lora2.hub import HubUnavailable, check_available
from lora2.records.files import DiskFull, explain_full_disk
from lora2.records.paths import log_file, status_of
from lora2.records.run_folder import tidy
from lora2.sweep.pool import plan_workers, run_all
from lora2.sweep.table import Job
from lora2.sweep.worker import Outcome

INTERRUPTED = 130
FINISHED = ("finished",)


def command(argv: Sequence[str], about: str, do: Callable[[Sequence[str]], int]) -> int:
    """Do what a command's words ask for and return the exit code; ``about`` is its help.

    Each failure with a message: wrong words are 2, a full disk or no hub 1, Ctrl-C 130.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(about)
        return 0 if argv else 2
    # transformers announces its own renamings once per model.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return do(argv)
    except ConfigError as error:
        print(f"{error}\n{about.splitlines()[-1]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (DiskFull, HubUnavailable) as error:
        print(error, file=sys.stderr)
        return 1


def begin(jobs: Sequence[Job], settled: Sequence[str] = FINISHED) -> list[Job]:
    """Tidy the results folders and return the runs to do: those with no ``settled`` status."""
    for folder in dict.fromkeys(job.resolved.config.results.dir for job in jobs):
        with explain_full_disk(Path(folder)):
            tidy(Path(folder))
    left = [job for job in jobs if status_of(job.resolved.config) not in settled]
    if jobs:
        print(f"{len(jobs)} runs, {len(jobs) - len(left)} finished already", flush=True)
    return left


def sweep_here(
    jobs: Sequence[Job], workers: int | None, settled: Sequence[str] = FINISHED
) -> list[Outcome]:
    """Do on this machine what is left of ``jobs``; a run whose status is ``settled`` is over.

    Raises:
        HubUnavailable: a repository the runs need is not available; none was begun.
    """
    left = begin(jobs, settled)
    if not left:
        return []
    # Not for a cluster, whose nodes may reach more than this machine.
    check_available(need for job in left for need in job.resolved.config.hub_needs())
    outcomes = run_all(left, plan_workers(left, workers), len(jobs) - len(left))
    if any(one.disk_full for one in outcomes):
        print(f"{len(left) - len(outcomes)} runs were not begun for want of room")
    return outcomes


def summary(
    jobs: Sequence[Job], outcomes: Sequence[Outcome], settled: Sequence[str] = FINISHED
) -> int:
    """Name what ended otherwise than ``settled`` and where its log is; 1 if anything did."""
    failures = [one for one in outcomes if one.state not in settled]
    logs = {job.name: log_file(job.resolved.config) for job in jobs}
    for one in failures:
        print(f"{one.state}: {one.name}: {one.message} ({logs[one.name]})", file=sys.stderr)
    if failures:
        print(f"{len(failures)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0

"""Run a sweep in worker processes on this machine; it survives the death of any of them."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

from lora2.hub import check_available
from lora2.records.files import explain_full_disk
from lora2.records.run_folder import log_file, status_of, tidy
from lora2.sweep.table import Job
from lora2.sweep.worker import Order, Outcome, Record, Run, record_death, serve, train

PER_GPU = 4  # workers with the tiny embedded encoder; a larger one gets a GPU to itself
FINISHED = ("finished",)


class Progress:
    """Print a line for every run that ends; the time left is estimated from optimiser steps."""

    def __init__(self, jobs: Sequence[Job], already: int):
        self.runs, self.ended = len(jobs) + already, already
        self.steps, self.steps_done = sum(job.resolved.steps or 1 for job in jobs), 0
        self.started = time.monotonic()

    def end_of(self, job: Job, outcome: Outcome) -> None:
        self.ended += 1
        self.steps_done += job.resolved.steps or 1
        spent = time.monotonic() - self.started
        left = duration(spent * (self.steps - self.steps_done) / self.steps_done)
        reason = f": {outcome.message}" if outcome.message else ""
        line = f"[{self.ended}/{self.runs}, {left} left] {outcome.name} {outcome.state}{reason}"
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 45 s, 12 min, 3.5 h, 12 days."""
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


@dataclasses.dataclass
class _Task:
    """A run still to do; ``deaths`` counts the processes that died doing it."""

    job: Job
    deaths: int = 0
    wait: bool = False
    died: str | None = None


class _Worker:
    """A process, our end of its pipe, and its current run."""

    def __init__(self, environment: dict[str, str], run: Run, record: Record):
        self.arguments = (environment, run, record)
        self.task: _Task | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *self.arguments))
        # Ctrl-C reaches the whole process group: only the parent handles it.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, previous)
        theirs.close()  # so that our end sees EOF when the process ends

    def restart(self) -> str:
        """Replace a process that died; return how it died."""
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        self.start()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def send(self, order: Order | None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # receive notices
            self.pipe.send(order)


class Pool:
    """Worker processes that share a list of runs, one for each of ``environments``."""

    def __init__(
        self, environments: Sequence[dict[str, str]],
        run: Run = train, record: Record = record_death,
    ):  # fmt: skip
        self.environments, self.run, self.record = environments, run, record

    def do(self, jobs: Sequence[Job], already: int = 0) -> list[Outcome]:
        """Do ``jobs``, each once even if other sweeps do some of them; return how each ended.

        The lines printed also count the ``already`` finished runs. Ctrl-C ends the workers and is
        raised again.
        """
        self.queue, self.progress = deque(map(_Task, jobs)), Progress(jobs, already)
        self.began, self.outcomes, self.workers = time.time(), list[Outcome](), list[_Worker]()
        try:
            for environment in self.environments[: len(jobs)]:
                self.workers.append(_Worker(environment, self.run, self.record))
            while self.queue or self._busy():
                self.assign()
                answered = wait([worker.pipe for worker in self._busy()])
                for worker in self.workers:
                    if worker.pipe in answered:
                        self.receive(worker)
        finally:
            self._stop()
        return self.outcomes

    def assign(self) -> None:
        for worker in self.workers:
            if worker.task is None and self.queue:
                worker.task = task = self.queue.popleft()
                worker.send(Order(task.job.resolved.config, task.wait, task.died, self.began))

    def receive(self, worker: _Worker) -> None:
        """Handle a worker's answer, or the death of its process."""
        task, worker.task = worker.task, None
        assert task is not None
        try:
            outcome = worker.pipe.recv()
        except (EOFError, OSError):  # OSError: it died while answering
            outcome = self.retry_or_fail(task, worker.restart())
        if outcome is None:
            return
        if outcome.state == "busy":  # another sweep is doing it: wait for it after our runs
            self.queue.append(dataclasses.replace(task, wait=True))
            return
        self.outcomes.append(outcome)
        if outcome.disk_full:
            self.queue.clear()  # the same command does them once there is space
        self.progress.end_of(task.job, outcome)

    def retry_or_fail(self, task: _Task, how: str) -> Outcome | None:
        """Queue a run whose process died for a retry or to be recorded as failed, or give it up."""
        if task.died is not None:
            return Outcome(task.job.name, "failed", f"{task.died}; recording it failed ({how})")
        task.deaths += 1
        if task.deaths < 2:  # another program may have been the cause
            line = f"{task.job.name}: its process died ({how}); trying once more"
            print(line, file=sys.stderr, flush=True)
        else:
            task.died = f"its process died {task.deaths} times ({how}); out of memory?"
        self.queue.appendleft(task)
        return None

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.task]

    def _stop(self) -> None:
        for worker in self.workers:
            if worker.task is None:
                worker.send(None)
            else:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(timeout=10)
            worker.process.kill()  # if it has not ended
            worker.process.join()
            worker.pipe.close()


def plan_workers(jobs: Sequence[Job], wanted: int | None = None) -> list[dict[str, str]]:
    """Return each worker's environment: its device and threads.

    Without ``wanted``: one worker per GPU, or ``PER_GPU`` of the embedded encoder; without a GPU
    one per core for the embedded encoder and one with all cores for any other.
    """
    cores, gpus = len(os.sched_getaffinity(0)), gpu_count()
    tiny = all(job.resolved.config.backbone.profile == "embedded" for job in jobs)
    usual = min(cores, gpus * PER_GPU if gpus else cores) if tiny else max(1, gpus)
    count = max(1, min(usual if wanted is None else wanted, len(jobs)))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    base = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    device = [{"CUDA_VISIBLE_DEVICES": names[i % gpus]} if gpus else {} for i in range(count)]
    return [base | variables for variables in device]


def gpu_count() -> int:
    """Return how many CUDA (or ROCm) GPUs torch can use; without a driver torch is not imported."""
    if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        return 0
    import torch

    return torch.cuda.device_count()


def unfinished(jobs: Sequence[Job], settled: Sequence[str] = FINISHED) -> list[Job]:
    """Return the runs whose folder has no ``settled`` status."""
    return [job for job in jobs if status_of(job.resolved.config) not in settled]


def begin(jobs: Sequence[Job], settled: Sequence[str] = FINISHED) -> list[Job]:
    """Tidy the results folders, print how many runs are finished, and return the others."""
    for folder in {Path(job.resolved.config.results.dir) for job in jobs}:
        with explain_full_disk(folder):
            tidy(folder)
    left = unfinished(jobs, settled)
    if jobs:
        print(f"{len(jobs)} runs, {len(jobs) - len(left)} finished already", flush=True)
    return left


def sweep_here(
    jobs: Sequence[Job], workers: int | None, settled: Sequence[str] = FINISHED
) -> list[Outcome]:
    """Do ``jobs`` on this machine, except those whose status is in ``settled``."""
    left = begin(jobs, settled)
    if not left:
        return []
    # Not checked for a cluster: its nodes may reach a hub that this machine cannot.
    check_available(need for job in left for need in job.resolved.config.hub_needs())
    outcomes = Pool(plan_workers(left, workers)).do(left, len(jobs) - len(left))
    if any(outcome.disk_full for outcome in outcomes):
        print(f"{len(left) - len(outcomes)} runs were not started: the disk is full")
    return outcomes


def summary(
    jobs: Sequence[Job], outcomes: Sequence[Outcome], settled: Sequence[str] = FINISHED
) -> int:
    """Print every run that did not end ``settled``, with its log; return 1 if there is any."""
    failures = [outcome for outcome in outcomes if outcome.state not in settled]
    logs = {job.name: log_file(job.resolved.config) for job in jobs}
    for o in failures:
        print(f"{o.state}: {o.name}: {o.message} ({logs[o.name]})", file=sys.stderr)
    if failures:
        print(f"{len(failures)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0

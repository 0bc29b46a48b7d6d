"""Many runs on this machine: worker processes, of which any may die without the sweep dying."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from lora2.records.paths import status_of
from lora2.sweep import worker
from lora2.sweep.presets import gpu_count, gpu_names
from lora2.sweep.progress import Progress
from lora2.sweep.table import Job
from lora2.sweep.worker import Order, Outcome

ATTEMPTS = 2  # a run whose process dies is tried once more: the cause may have been a neighbour
PER_GPU = 4  # of the tiny embedded encoder; larger ones have a GPU each


@dataclasses.dataclass
class _Task:
    """A run still to do; ``deaths`` counts processes it was lost with."""

    job: Job
    deaths: int = 0
    wait: bool = False
    died: str | None = None


@dataclasses.dataclass
class _Worker:
    """A process, our end of its pipe, its place among the workers and what it is at."""

    process: SpawnProcess
    pipe: Connection
    place: int
    task: _Task | None = None


@dataclasses.dataclass
class Sweep:
    """How to run: ``workers`` at once, and what a worker calls (replaced in tests)."""

    workers: int
    environments: list[dict[str, str]]
    run: worker.Run = worker.train
    record: worker.Record = worker.record_death

    def start(self, place: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.environments[place], self.run, self.record)
        process = context.Process(target=worker.serve, args=arguments)
        # Ctrl-C reaches the whole process group: ignored from birth, it is the parent's to handle.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, previous)
        theirs.close()  # so that the pipe ends when the process does
        return _Worker(process, ours, place)


def plan_workers(jobs: Sequence[Job], wanted: int | None = None) -> Sweep:
    """Return how many workers to run and each one's device and threads.

    Left open: one per GPU, or ``PER_GPU`` of the embedded encoder; without a GPU one per core for
    the embedded encoder and one with all cores for any other.
    """
    cores, gpus = len(os.sched_getaffinity(0)), gpu_count()
    tiny = all(job.resolved.config.backbone.profile == "embedded" for job in jobs)
    count = wanted
    if count is None:
        count = min(cores, gpus * PER_GPU if gpus else cores) if tiny else max(1, gpus)
    count = max(1, min(count, len(jobs)))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    base = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    names = gpu_names(gpus)
    device = [{"CUDA_VISIBLE_DEVICES": names[i % gpus]} if gpus else {} for i in range(count)]
    return Sweep(workers=count, environments=[base | one for one in device])


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Return the runs without a finished folder."""
    return [job for job in jobs if status_of(job.resolved.config) != "finished"]


def run_all(jobs: Sequence[Job], sweep: Sweep, already: int = 0) -> list[Outcome]:
    """Do ``jobs`` (each once, whoever else is at them) and return what became of each.

    ``already`` runs were finished before and are counted in the bar. Ctrl-C ends the workers and
    is passed on; what they had finished stays, and the rest resumes from its checkpoints.
    """
    queue = deque(_Task(job) for job in jobs)
    workers: list[_Worker] = []
    progress = Progress(len(jobs) + already, already, sum(job.resolved.steps or 1 for job in jobs))
    outcomes: list[Outcome] = []
    began = time.time()
    try:
        for place in range(min(sweep.workers, len(queue))):
            workers.append(sweep.start(place))
        while queue or any(one.task for one in workers):
            for one in workers:
                if one.task is None and queue:
                    _give(one, queue.popleft(), began)
            busy = [one for one in workers if one.task]
            progress.show(len(busy))
            heard = wait([one.pipe for one in busy], timeout=1.0 if progress.live else None)
            for one in busy:
                if one.pipe in heard:
                    _hear(one, workers, queue, sweep, progress, outcomes)
    finally:
        progress.close()
        _stop(workers)
    return outcomes


def _give(one: _Worker, task: _Task, began: float) -> None:
    one.task = task
    order = Order(task.job.resolved.config, task.wait, task.died, began)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: the next read says so
        one.pipe.send(order)


def _hear(
    one: _Worker,
    workers: list[_Worker],
    queue: deque[_Task],
    sweep: Sweep,
    progress: Progress,
    outcomes: list[Outcome],
) -> None:
    """Take one worker's answer, or see that it died and put another in its place."""
    task = one.task
    assert task is not None
    try:
        outcome = one.pipe.recv()
    except (EOFError, OSError):  # OSError: in the middle of its answer
        workers[one.place] = sweep.start(one.place)
        outcome = _bury(one, task, queue, progress)
    one.task = None
    if outcome is None:
        return
    if outcome.state == "busy":  # another sweep is at it: ask again when ours are done
        queue.append(dataclasses.replace(task, wait=True))
        return
    outcomes.append(outcome)
    if outcome.disk_full:
        queue.clear()  # each would be computed for nothing; the same command does them later
    running = sum(other.task is not None for other in workers)
    progress.end_of(outcome, task.job.resolved.steps or 1, running)


def _bury(one: _Worker, task: _Task, queue: deque[_Task], progress: Progress) -> Outcome | None:
    """Decide what becomes of the run whose process died: again, on record as failed, or lost."""
    one.process.join()
    one.pipe.close()
    code = one.process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if task.died is not None:
        return Outcome(task.job.name, "failed", f"{task.died}; not recorded ({how})")
    deaths = task.deaths + 1
    if deaths < ATTEMPTS:
        progress.note(f"{task.job.name}: its process died ({how}); once more")
        queue.appendleft(dataclasses.replace(task, deaths=deaths))
    else:
        why = f"its process died {deaths} times ({how}); out of memory?"
        queue.appendleft(dataclasses.replace(task, deaths=deaths, died=why))
    return None


def _stop(workers: Sequence[_Worker]) -> None:
    """End idle workers politely and busy ones by force."""
    for one in workers:
        if one.task is not None:
            one.process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.pipe.send(None)
    for one in workers:
        one.process.join(timeout=10)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
        one.pipe.close()

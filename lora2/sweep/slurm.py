"""Submit runs as a Slurm job array through submitit; interrupted ones are requeued and resumed."""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora2.config.problems import ConfigError, Problem
from lora2.config.schema import RunConfig
from lora2.records.run_folder import status_of
from lora2.sweep import worker
from lora2.sweep.pool import Progress
from lora2.sweep.table import Job
from lora2.sweep.worker import Order, Outcome

POLL_SECONDS = 10.0
DEFAULTS: dict[str, Any] = {"name": "lora2", "timeout_min": 24 * 60, "cpus_per_task": 2}


class ClusterRun:
    """The callable that each job of the array runs.

    Before a time-out or a preemption submitit asks ``checkpoint`` what to run when the job is
    requeued. The run itself continues from its Trainer's last checkpoint.
    """

    def __call__(self, config: RunConfig) -> Outcome:
        outcome = worker.carry_out(Order(config, wait=True), worker.train, worker.record_death)
        if outcome.state != "finished":
            raise RuntimeError(f"{outcome.name} {outcome.state}: {outcome.message}")
        return outcome

    def checkpoint(self, config: RunConfig) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config)


def submit(
    jobs: Sequence[Job], folder: Path, options: Mapping[str, Any], at_once: int | None
) -> list[str]:
    """Submit one array and return its job ids; ``options`` go to submitit's update_parameters.
    Raises ConfigError: submitit or Slurm is not installed, or submitit has no such option.
    """
    try:
        import submitit
    except ImportError as error:
        wrong = "submitit is not installed; type pip install submitit"
        raise ConfigError([Problem("cluster", "slurm", "local", wrong)]) from error
    if submitit.SlurmExecutor.affinity() < 0:
        wrong = "sbatch is not found on this machine"
        raise ConfigError([Problem("cluster", "slurm", "local", wrong)])
    executor = submitit.AutoExecutor(  # after a time-out a run continues from its checkpoint
        folder=folder / "logs" / "slurm", cluster="slurm", slurm_max_num_timeout=100
    )
    tiny = all(job.resolved.config.backbone.profile == "embedded" for job in jobs)
    values = {**DEFAULTS, **({} if tiny else {"gpus_per_node": 1}), **options}
    if at_once is not None:
        values["slurm_array_parallelism"] = at_once
    try:
        executor.update_parameters(**values)
    except (NameError, AssertionError) as error:  # an unknown name, a wrong type
        raise ConfigError([Problem("slurm", dict(options), wrong=str(error))]) from error
    submitted = executor.map_array(ClusterRun(), [job.resolved.config for job in jobs])
    return [job.job_id for job in submitted]


def watch(jobs: Sequence[Job], ids: Sequence[str], already: int = 0) -> list[Outcome]:
    """Wait until the array has left the queue and return how each run ended.

    Statuses are read from the run folders: a cluster may lack Slurm's accounting. Ctrl-C is
    raised again; the jobs stay in the queue.
    """
    progress = Progress(jobs, already)
    waiting, outcomes = dict(zip(ids, jobs, strict=True)), list[Outcome]()
    while waiting:
        queued = in_queue(list(waiting))
        for number in [number for number in waiting if number not in queued]:
            job = waiting.pop(number)
            state = status_of(job.resolved.config)
            known = {None: "left the queue without a result; see logs/slurm", "finished": ""}
            outcomes.append(Outcome(job.name, state or "failed", known.get(state, "see its log")))
            progress.end_of(job, outcomes[-1])
        if waiting:
            time.sleep(POLL_SECONDS)
    return outcomes


def in_queue(ids: Sequence[str]) -> set[str]:
    """Return which of these jobs (``123_0``) wait or run; all of them if squeue fails."""
    command = ["squeue", "--noheader", "--array", "--format=%i", "--user", getpass.getuser()]
    done = subprocess.run(command, capture_output=True, text=True)
    return set(done.stdout.split()) & set(ids) if done.returncode == 0 else set(ids)

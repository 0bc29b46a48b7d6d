"""A study's committed CSVs, with scores chosen by a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from lora2.experiment.config import as_tree
from lora2.experiment.selection import scored
from lora2.experiment.study import load_study
from lora2.experiment.studyruns import candidates, final_parts, first_rates
from lora2.experiment.tableplan import Job, distinct
from lora2.glue.tasks import TASKS
from lora2.report import store

Score = Callable[[str, str, int], float]  # row, task, seed -> percent points
MRPC_MAJORITY = 100 * 279 / 408
PARAMETERS = {"full": 22_700_000, "bitfit": 30_000, "adalora-r2": 124_000, "lora-r1": 41_472,
              "sora-r1": 41_508, "lora2-k1": 42_300, "adalora-r8": 498_000, "lora-r8": 331_776,
              "sora-r8": 332_000, "lora2-k8": 336_000, "lora-xs": 9_216}  # fmt: skip


def noisy(row: str, task: str, seed: int) -> float:
    """Scores that differ by row, task and seed in no pattern."""
    return 60 + 10 * np.random.default_rng([len(row), sum(map(ord, row + task)), seed]).random()


def write_study(folder: Path, score: Score = noisy, name: str = "small-cpu") -> Path:
    """Write rates.csv, runs.csv and curves.csv of a whole study into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    study = load_study(name)
    rates = first_rates(study)
    frame = scored(study, candidates(study), None)
    first = frame.groupby("method")["learning_rate"].transform("first")
    frame = frame.assign(status="finished", score_best=70.0, score_last=69.0, sum=70.0,
                         chosen=frame["learning_rate"] == first)  # fmt: skip
    frame.to_csv(folder / "rates.csv", index=False)
    parts = final_parts(study, rates)
    done = distinct([job for part in parts for job in part.jobs])
    pd.DataFrame([_run(job, score(job.row, job.task, job.resolved.config.seed)) for job in done]
                 ).to_csv(folder / "runs.csv", index=False)  # fmt: skip
    lines = [
        {"run": job.name, "step": step, "score": score(job.row, job.task, job.resolved.config.seed)
         - lag} for job in done for step, lag in ((75, 3.0), (150, 0.0))
    ]  # fmt: skip
    pd.DataFrame(lines).to_csv(folder / "curves.csv", index=False)
    return folder


def _run(job: Job, score: float) -> dict[str, object]:
    config = job.resolved.config
    seen = job.task in (config.backbone.overlap or ())
    parameters = PARAMETERS.get(job.row, 42_300)
    return {
        "run": job.name, "schema": store.SCHEMA, "status": "finished", "error": "",
        "profile": "small", "protocol": config.protocol, "backbone": config.backbone.name,
        "task": job.task, "method": config.method.name, "seed": config.seed,
        "batch_size": config.train.batch_size, "precision": "fp32", "device": "cpu | <b>two</b>",
        "torch_threads": 1, "data_fingerprint": f"{job.task}-fingerprint",
        "data_marks": "its data was seen" if seen else "", "backbone_revision": "r1",
        "params_adapter": parameters, "params_kept": parameters // 2, "params_head": 148_610,
        "params_encoder": 22_713_216, "steps": job.resolved.steps, "seconds_per_step": 0.2,
        "peak_memory_mb": 900.0, "commit": "abc123", "dirty": False, "python": "3.11.7",
        "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "datasets": "5.2.0",
        "accelerate": "1.15.0", "score_best": score, "score_last": score,
        "config": json.dumps(store.flatten(as_tree(config)), default=str),
        **{f"{which}_{metric}": value for which in ("best", "last")
           for metric, value in _metrics(job.task, score).items()},
    }  # fmt: skip


def _metrics(task: str, score: float) -> dict[str, float]:
    """Fractions; where MRPC's accuracy is that of its majority class, so is its F1."""
    found = dict.fromkeys(TASKS[task].metrics, score / 100)
    if task == "mrpc" and abs(score - MRPC_MAJORITY) < 1e-9:
        found["f1"] = 2 * 279 / (279 + 408)
    return found

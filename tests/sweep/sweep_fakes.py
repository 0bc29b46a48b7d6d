"""Runs that take no time, for the tests of sweeps: what happens is decided by the seed."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import time
from functools import cache
from pathlib import Path

import yaml

from lora2.config.load import Resolved, resolve
from lora2.config.schema import RunConfig, as_tree, run_name
from lora2.sweep.table import Job

DIES_ONCE, DIES, FAILS, SLOW = 101, 102, 103, 104


@cache
def _resolved(row: str) -> Resolved:
    words = {"lora": ["method=lora"], "lora2": ["method=lora2", "method.k=1"]}[row]
    return resolve(["task=rte", "backbone=embedded", "train.max_steps=50", *words])


def job(folder: Path, seed: int = 1, row: str = "lora") -> Job:
    """One run of a tiny table that writes under ``folder``."""
    resolved = _resolved(row)
    results = dataclasses.replace(resolved.config.results, dir=str(folder))
    config = dataclasses.replace(resolved.config, seed=seed, results=results)
    return Job(row, "rte", dataclasses.replace(resolved, config=config))


def publish(config: RunConfig, status: str = "finished") -> None:
    """Write a run folder as the driver does, whole or not at all."""
    name = run_name(config)
    folder = Path(config.results.dir) / "runs" / name
    temporary = folder.parent / f".{name}"
    temporary.mkdir(parents=True)
    row = {
        "run": name,
        "schema": 1,
        "status": status,
        "error": "",
        "profile": config.backbone.profile,
        "backbone": config.backbone.name,
        "task": config.task,
        "method": config.method.name,
        "label": config.method.name,
        "seed": config.seed,
        "best_accuracy": 0.5 + config.seed / 1000,
        "last_accuracy": 0.4,
        "seconds_per_step": time.perf_counter(),
    }
    with open(temporary / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    (temporary / "config.yaml").write_text(yaml.safe_dump(as_tree(config)))
    (temporary / "status").write_text(f"{status}\n")
    os.replace(temporary, folder)


def ran(folder: Path) -> list[int]:
    """Return the seeds of all runs that were begun, in order."""
    path = folder / "ran.txt"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def run(config: RunConfig) -> None:
    """Stand in for ``lora2.run.run.run``."""
    folder = Path(config.results.dir)
    before = ran(folder)
    with open(folder / "ran.txt", "a") as file:
        file.write(f"{config.seed}\n")
    print(f"this is run {config.seed}", flush=True)
    repaired = (folder / "repaired").exists()
    if config.seed == SLOW:
        time.sleep(0.5)
    if not repaired and config.seed == FAILS:
        raise ValueError("no such luck\nand more")
    if not repaired and (
        config.seed == DIES or (config.seed == DIES_ONCE and DIES_ONCE not in before)
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    status = Path(config.results.dir) / "runs" / run_name(config)
    if status.exists():
        os.rename(status, folder / f"old-{config.seed}")
    publish(config)


def record(config: RunConfig, reason: str) -> None:
    """Stand in for ``lora2.sweep.worker.record_death``."""
    (Path(config.results.dir) / "deaths.txt").write_text(f"{config.seed} {reason}\n")
    publish(config, "failed")

"""Runs that are slow to publish, and readers that look closely."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from lora2.config.schema import RunConfig, as_tree, run_name
from lora2.records.run_folder import publish, run_dir
from lora2.sweep.pool import Pool, unfinished
from lora2.sweep.worker import Outcome
from tests.sweep.sweep_fakes import job

FAILS_AT_FIRST = (3, 7, 11)
PAUSE = 0.004  # seconds between two parts of a file


def run(config: RunConfig) -> None:
    """Stand in for ``lora2.run.run.run``: note that it began, publish in small parts."""
    folder = Path(config.results.dir)
    with open(folder / "ran.txt", "a") as file:
        file.write(f"{config.seed}\n")
    if config.seed in FAILS_AT_FIRST and not (folder / "repaired").exists():
        publish(run_dir(config), partial(_write, config, "failed"))
        raise ValueError("no such luck")
    publish(run_dir(config), partial(_write, config, "finished"))


def record(config: RunConfig, reason: str) -> None:
    raise AssertionError(f"no process dies here: {reason}")


def _write(config: RunConfig, status: str, folder: Path) -> None:
    row = {
        "run": run_name(config), "schema": 1, "status": status, "error": "",
        "backbone": config.backbone.name, "task": config.task, "method": config.method.name,
        "seed": config.seed, "best_accuracy": accuracy(config.seed),
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    metrics, half = text.getvalue(), len(text.getvalue()) // 2
    parts = {
        "status": [f"{status}\n"],
        "metrics.csv": [metrics[:half], metrics[half:]],
        "config.yaml": [yaml.safe_dump(as_tree(config))],
    }
    for name, texts in parts.items():
        with open(folder / name, "w") as file:
            for part in texts:
                file.write(part)
                file.flush()
                time.sleep(PAUSE)


def accuracy(seed: int) -> float:
    return 0.5 + seed / 1000


def sweep(folder: Path, seeds: Sequence[int], workers: int = 1) -> list[Outcome]:
    """Do what is unfinished of these runs in worker processes."""
    left = unfinished([job(folder, seed) for seed in seeds])
    return Pool([{}] * workers, run=run, record=record).do(left)


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """Yield the warnings that a logger gives while the block runs."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def read_until(over: Callable[[], bool], read: Callable[[], pd.DataFrame | None]) -> int:
    """Read again and again until ``over``; return how many frames there were.

    Raises:
        AssertionError: a row was half, a run that was finished is missing, or one was left out.
    """
    finished: set[int] = set()
    frames, last = 0, False
    with warnings_of("lora2.records.store") as left_out:
        while not last:
            last = over()  # and once more after that
            time.sleep(PAUSE)  # or the others would hardly get the lock
            frame = read()
            if frame is None:
                continue
            frames += 1
            check(frame)
            now = set(frame.loc[frame["status"] == "finished", "seed"])
            assert finished <= now, f"finished runs vanished: {finished - now}"
            finished = now
    assert not left_out, left_out
    return frames


def check(frame: pd.DataFrame) -> None:
    """Every row is whole: its values are those that its run wrote."""
    assert frame["run"].is_unique and frame["status"].isin(["finished", "failed"]).all()
    assert (frame["best_accuracy"] == frame["seed"].map(accuracy)).all(), frame
    assert (frame["config"].str.len() > 100).all(), frame["config"]

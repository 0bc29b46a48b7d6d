"""Tiny embedded runs shared by the driver's tests: 48 rows to train on, 40 to be scored on."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from lora2.config.load import resolve

TINY = ("backbone=embedded", "train.max_steps=6", "train.eval_steps=3", "train.batch_size=8",
        "data.train_rows=88", "data.holdout=40")  # fmt: skip


def pytest_collection_finish():
    """Spare the imported modules from garbage collection, which each run does twice."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def do_run(tmp_path_factory):
    """Return a function: run words on the embedded encoder for 6 steps, give the run folder."""
    from lora2.run.run import run

    def do(*words: str, into: Path | None = None) -> Path:
        results = into or tmp_path_factory.mktemp("results")
        config = resolve([*TINY, *words, f"results.dir={results}"]).config
        return run(config, progress=False)

    return do

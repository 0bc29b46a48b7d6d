"""A run folder appears whole or not at all, and what killed processes left is removed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lora2.config.load import run_name
from lora2.config.schema import RunConfig
from lora2.records.checkpoint import forget
from lora2.records.locks import flush_to_disk, hold
from lora2.records.paths import lock_file, status


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder beside ``folder`` and rename it into place.

    A failed run's folder is replaced; a finished one is never overwritten.

    Raises:
        FileExistsError: ``folder`` holds a finished run.
    """
    if status(folder) == "finished":
        raise FileExistsError(f"{folder} holds a finished run; it is kept as it is")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    replaced = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir()
        write(temporary)
        flush_to_disk(temporary)
        if folder.exists():
            os.replace(folder, replaced)  # by name: no reader sees a folder lose its files
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def alone(config: RunConfig, *, wait: bool) -> Iterator[bool]:
    """Hold a run's lock, as ``hold``; what a killed process left of it is removed."""
    with hold(lock_file(config), wait=wait) as held:
        if held:
            _clear(Path(config.results.dir), run_name(config))
        yield held


def tidy(results: Path) -> None:
    """Remove what killed processes left in a results folder, but for checkpoints to go on from.

    What a living process is at is left alone: it holds the run's lock.
    """
    unpublished = [path.name[1:].rpartition(".")[0] for path in (results / "runs").glob(".*.*")]
    begun = [path.name.removesuffix(".lock") for path in (results / "work").glob("*-*")]
    for name in {*unpublished, *begun}:
        with hold(results / "work" / f"{name}.lock", wait=False) as held:
            if held:
                _clear(results, name)


def _clear(results: Path, name: str) -> None:
    """Remove what is over of a run whose lock is held."""
    for path in (results / "runs").glob(f".{name}.*"):
        shutil.rmtree(path, ignore_errors=True)
    if status(results / "runs" / name) == "finished":
        forget(results / "work" / name)

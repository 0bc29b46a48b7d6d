"""The files of a run: run folders appear whole or not at all, and so do checkpoints.

Imports no torch: a worker sets its threads before loading it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lora2.config.schema import RunConfig, run_name
from lora2.records.files import flush_to_disk, hold

LAST_FILE = "recorder.npz"  # written last into a checkpoint, under another name, and renamed


def run_dir(config: RunConfig) -> Path:
    """Return the run folder, which is whole or absent."""
    return Path(config.results.dir) / "runs" / run_name(config)


def work_dir(config: RunConfig) -> Path:
    """Return where a run keeps the checkpoints it resumes from until it ends."""
    return Path(config.results.dir) / "work" / run_name(config)


def lock_file(config: RunConfig) -> Path:
    """Return the file that a process locks while it does the run."""
    return Path(config.results.dir) / "work" / f"{run_name(config)}.lock"


def log_file(config: RunConfig) -> Path:
    """Return where a sweep's worker writes what the run prints."""
    return Path(config.results.dir) / "logs" / f"{run_name(config)}.log"


def status(folder: Path) -> str | None:
    """Return finished, failed or diverged, or None if ``folder`` is not a whole run folder."""
    path = folder / "status"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def status_of(config: RunConfig) -> str | None:
    return status(run_dir(config))


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` to fill a temporary folder beside ``folder`` and rename it into place.

    A failed run's folder is replaced; of a finished one it is a FileExistsError.
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
def hold_run(config: RunConfig, *, wait: bool) -> Iterator[bool]:
    """Hold a run's lock, as ``hold``; remove first what a killed process left of the run."""
    with hold(lock_file(config), wait=wait) as held:
        if held:
            _remove_leftovers(Path(config.results.dir), run_name(config))
        yield held


def tidy(results: Path) -> None:
    """Remove what killed processes left in a results folder, except checkpoints."""
    unpublished = [path.name[1:].rpartition(".")[0] for path in (results / "runs").glob(".*.*")]
    begun = [path.name.removesuffix(".lock") for path in (results / "work").glob("*-*")]
    for name in {*unpublished, *begun}:
        with hold(results / "work" / f"{name}.lock", wait=False) as held:
            if held:
                _remove_leftovers(results, name)


def _remove_leftovers(results: Path, name: str) -> None:
    for path in (results / "runs").glob(f".{name}.*"):
        shutil.rmtree(path, ignore_errors=True)
    if status(results / "runs" / name) == "finished":
        remove_checkpoints(results / "work" / name)


def newest_checkpoint(work: Path) -> Path | None:
    """Return the newest ``work/checkpoint-N`` that was written to its end, or None."""
    whole = [path for path in work.glob("checkpoint-*") if (path / LAST_FILE).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def keep_checkpoint(work: Path, kept: Path | None) -> None:
    """Remove every checkpoint in ``work`` except ``kept``."""
    for path in work.glob("checkpoint-*"):
        if path != kept:
            (path / LAST_FILE).unlink(missing_ok=True)  # first: one killed here looks not whole
            shutil.rmtree(path)


def remove_checkpoints(work: Path) -> None:
    """Remove the work folder of a run that has ended."""
    keep_checkpoint(work, None)
    shutil.rmtree(work, ignore_errors=True)

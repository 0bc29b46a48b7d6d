"""The checkpoint that an interrupted run goes on from: the newest whole one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError

# Written last of all that a checkpoint holds, under a temporary name and renamed.
LAST_FILE = "recorder.npz"


def newest_whole(work: Path) -> Path | None:
    """Return the newest ``work/checkpoint-N`` that was written to its end, or None."""
    whole = [path for path in work.glob("checkpoint-*") if (path / LAST_FILE).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def keep_only(work: Path, kept: Path | None) -> None:
    """Remove every checkpoint in ``work`` but ``kept``.

    Each loses its last file first: a process killed here leaves none that looks whole.
    """
    for path in work.glob("checkpoint-*"):
        if path != kept:
            (path / LAST_FILE).unlink(missing_ok=True)
            shutil.rmtree(path)


def forget(work: Path) -> None:
    """Remove all checkpoints of a run that is over, and their folder."""
    keep_only(work, None)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def readable(checkpoint: Path | None) -> Iterator[None]:
    """Let what a damaged or foreign checkpoint raises say which one it is and what to do.

    Raises:
        ValueError: in place of the libraries' errors of unpickling and of file formats.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (UnpicklingError, SafetensorError, EOFError, RuntimeError, ValueError) as error:
        general = isinstance(error, RuntimeError | ValueError)
        torn = isinstance(error, JSONDecodeError) or str(error).startswith("PytorchStream")
        if checkpoint is None or (general and not torn):
            raise
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{checkpoint} cannot be read ({type(error).__name__}: {why}): remove that folder, and "
            "the run begins again"
        ) from error

"""The checkpoint that an interrupted run goes on from: the newest whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

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

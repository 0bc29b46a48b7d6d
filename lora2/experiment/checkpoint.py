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


def drop_partial(work: Path) -> None:
    """Remove checkpoints whose writing was cut off, so that nobody resumes from one."""
    for path in work.glob("checkpoint-*"):
        if not (path / LAST_FILE).is_file():
            shutil.rmtree(path)

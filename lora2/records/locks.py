"""Files that several processes share, and that any of them may be killed at: locks, whole files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path`` while the block runs; yield whether it could be had.

    The kernel gives the lock back when its holder dies. With ``wait`` the call sleeps until another
    holder is done, so it always yields True. The file is removed at the end; whoever waited for it
    meanwhile makes a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, wait)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` in one step when the block ends well.

    Readers see the old file or the new one, never a part. Writers wait for each other, so a block
    that reads ``path`` first loses nothing that another has written. What a killed writer left is
    overwritten by the next.

    Raises:
        OSError: the disk is full, or ``path`` may not be written; it is as it was. So is what a
            link in the place of the unfinished file leads to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    handle = _acquire(unfinished, wait=True)
    assert handle is not None
    with os.fdopen(handle, "wb") as file:  # closing gives the lock back: not before the last step
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def flush_to_disk(folder: Path) -> None:
    """Have every file in ``folder`` on the disk, or learn from the OSError that it is full."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _acquire(path: Path, wait: bool) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        if _still_there(handle, path):
            return handle
        os.close(handle)  # its last holder has removed it: this lock protects nothing


def _still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False

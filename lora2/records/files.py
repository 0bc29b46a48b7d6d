"""Lock files, replace files in one step, and explain a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full; over the quota; over a limit per file
# In messages of libraries that write natively: safetensors gives the code, torch.save does not.
FULL_MESSAGES = (*(f"(os error {code})" for code in FULL), "inline_container.cc",
                 "PytorchStreamWriter", "iostream error")  # fmt: skip


class DiskFull(OSError):
    """No space to write; the message says where, what is kept and what to do."""


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path`` while the block runs; yield whether this process holds it.

    The kernel releases the lock when its holder dies. ``wait`` sleeps until the other holder is
    done. The file is removed at the end; a process that waited for it makes a new one.
    """
    handle = _lock(path, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` in one step when the block ends without an error.

    Readers see the old file or the new one. Writers wait for each other, so a block that reads
    ``path`` first loses nothing that another added. What a killed writer left is overwritten. An
    OSError, also of a link in the place of the temporary file, leaves ``path`` unchanged.
    """
    temporary = path.with_name(f".{path.name}.new")
    handle = _lock(temporary, wait=True)
    assert handle is not None
    with os.fdopen(handle, "wb") as file:  # closing releases the lock: not before the last step
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def flush_to_disk(folder: Path) -> None:
    """Write every file in ``folder`` through to the disk; OSError if it is full."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _lock(path: Path, wait: bool) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        locked = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed it meanwhile: then this lock protects nothing.
            locked = os.path.samestat(os.fstat(handle), os.stat(path))
        except BlockingIOError:
            return None
        except FileNotFoundError:
            continue
        finally:
            if not locked:
                os.close(handle)
        if locked:
            return handle


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether ``error``, or an error that caused it, is about a full disk."""
    while error is not None:
        full = isinstance(error, DiskFull) or getattr(error, "errno", None) in FULL
        if full or any(part in str(error) for part in FULL_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Raise the errors of a full disk as ``DiskFull``; ``folder`` is where results go."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free / 2**20
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DiskFull(
            f"no space to write in {folder} ({free:,.0f} MiB free; {why}). Finished runs and the "
            "last complete checkpoints are kept. Free some space, then repeat the same command: "
            "it resumes"
        ) from error

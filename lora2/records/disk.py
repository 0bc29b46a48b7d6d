"""A full disk: told from other errors, and said with what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full; over the quota; over a limit per file
# What libraries say that write without Python: safetensors with the code, torch.save without.
WORDS = (*(f"(os error {code})" for code in CODES), "inline_container.cc", "PytorchStreamWriter",
         "iostream error")  # fmt: skip


class DiskFull(OSError):
    """Nothing more can be written; the message says where, what is kept and what to do."""


def is_full(error: BaseException | None) -> bool:
    """Tell whether ``error``, or what led to it, is that a file could not be written further."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in CODES:
            return True
        if isinstance(error, DiskFull) or any(word in str(error) for word in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one clear one; ``folder`` is where results go.

    Raises:
        DiskFull: a file could not be written further.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(message(error, folder)) from error
        raise


def message(error: Exception, folder: Path) -> str:
    """Return what happened, what is kept and what to do, in one line."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 2**20
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"no room to write in {folder} ({free:,.0f} MiB free; {why}). Finished runs and the last "
        "whole checkpoints are kept. Make room there, then repeat the same command: it goes on"
    )

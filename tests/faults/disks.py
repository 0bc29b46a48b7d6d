"""A disk of a few MiB of its own, which can be filled to the last byte and freed again."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(at: Path, mib: int = 16) -> Iterator[Path]:
    """Mount a tmpfs of ``mib`` MiB at the new folder ``at``; skip the test where that is refused.

    ``at`` is given back resolved.
    """
    at.mkdir(parents=True)
    size = f"size={mib}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(at)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a small disk needs mount(8), which is not on this machine")
    if done.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte on ``disk``."""
    with open(disk / BALLAST, "ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    with pytest.raises(OSError) as refused, open(disk / "one more", "wb", buffering=0) as file:
        file.write(b"x")
    assert refused.value.errno == errno.ENOSPC
    (disk / "one more").unlink()


def free(disk: Path) -> None:
    """Make the room again that ``fill`` took."""
    (disk / BALLAST).unlink()

"""Is there a model and data hub? Found out in seconds, because a blocked one hangs for long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PROBE_SECONDS = 5.0
T = TypeVar("T")


def offline_reason(path: str | None, repo_type: str = "model") -> str | None:
    """Return why the hub cannot be asked for ``path``, or None when it can or need not be.

    A local folder needs no hub. ``HF_HUB_OFFLINE=1`` and a hub that does not answer within
    ``PROBE_SECONDS`` are reasons; then only the cache on this machine is left.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if path is None or Path(path).expanduser().is_dir():
        return None
    if is_offline_mode():
        return "HF_HUB_OFFLINE=1 is set"
    _, reason = ask(lambda: HfApi().repo_info(path, repo_type=repo_type, timeout=PROBE_SECONDS))
    return reason


def not_at_hand(path: str, repo_type: str) -> str | None:
    """Return why a repository can be had neither from the cache nor from the hub, else None."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if (Path(HF_HUB_CACHE) / f"{repo_type}s--{path.replace('/', '--')}" / "snapshots").is_dir():
        return None
    return offline_reason(path, repo_type)


def ask(question: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return (answer, None), or (None, why not) after at most ``PROBE_SECONDS``.

    A thread, because a name look-up that hangs obeys no time-out of an HTTP client.
    """
    answers: queue.Queue[tuple[T | None, str | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # whatever went wrong is the answer
            answers.put((None, f"{type(error).__name__}: {error}"))

    threading.Thread(target=work, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return None, f"the hub did not answer within {PROBE_SECONDS:g} s"

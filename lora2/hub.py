"""Check within seconds whether hub repositories are available: a blocked network may hang."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROBE_SECONDS = 5.0
Need = tuple[str, str]  # repository, "model" or "dataset"
KEYS = {"model": "backbone.path=DIR", "dataset": "data.dir=DIR (DIR/<task>/<split>.parquet)"}


class HubUnavailable(RuntimeError):
    """A repository is neither on this machine nor reachable; the message says what to type."""


def check_available(needs: Iterable[Need]) -> None:
    """Check within ``PROBE_SECONDS`` that every repository is in the cache or on the hub.

    Raises HubUnavailable: naming each repository, why it is not available, and the three ways out.
    """
    if lacking := unavailable(needs):
        raise HubUnavailable("\n".join([*lacking.values(), ways_out(lacking)]))


def unavailable(needs: Iterable[Need]) -> dict[Need, str]:
    """Return those of ``needs`` that neither cache nor hub has, each with a line that says why."""
    asked = [need for need in dict.fromkeys(needs) if not cached(*need)]
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        reasons = list(pool.map(lambda need: offline_reason(*need), asked))
    names = {"model": "the encoder", "dataset": "the data"}
    return {
        (path, kind): f"{names[kind]} {path} is not available: {' '.join(why.split())}"
        for (path, kind), why in zip(asked, reasons, strict=True)
        if why is not None
    }


def ways_out(lacking: Iterable[Need]) -> str:
    """Return what to type without these repositories."""
    downloads, folders = "", dict[str, None]()
    for path, kind in lacking:
        option = " --repo-type dataset" * (kind == "dataset")
        downloads += f"\n    hf download {path}{option} --local-dir DIR"
        folders[KEYS[kind]] = None
    return (
        "Three ways out:\n"
        f"  connect to a network, or download once where there is one:{downloads}\n"
        f"  read from folders: {' '.join(folders)}\n"
        "  backbone=embedded (for a table: profile=embedded): a tiny encoder and synthetic "
        "sentences, no download"
    )


def cached(path: str, kind: str) -> bool:
    """Tell whether the cache has a folder of the repository, a part of it included."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_HUB_CACHE) / f"{kind}s--{path.replace('/', '--')}" / "snapshots").is_dir()


def offline_reason(path: str | None, kind: str = "model") -> str | None:
    """Return why the hub cannot be asked for ``path``; None if it can, or for a local folder."""
    return None if path is None or Path(path).expanduser().is_dir() else info(path, kind)[1]


def info(path: str, kind: str) -> tuple[Any, str | None]:
    """Return (the hub's description of a repository, None), or (None, why there is none)."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return None, "HF_HUB_OFFLINE=1 is set"
    return ask(lambda: HfApi().repo_info(path, repo_type=kind, timeout=PROBE_SECONDS))


def ask(question: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return (answer, None), or (None, the reason) after at most ``PROBE_SECONDS``.

    In a thread, because a name look-up that hangs ignores the time-out of an HTTP client.
    """
    answers: queue.Queue[tuple[Any, str | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # whatever went wrong is the reason
            answers.put((None, f"{type(error).__name__}: {error}"))

    threading.Thread(target=work, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return None, f"the hub did not answer within {PROBE_SECONDS:g} s"

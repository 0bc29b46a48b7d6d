"""What a sweep is at, from the files it has written so far."""

from __future__ import annotations

from pathlib import Path

from lora2.records.run_folder import LAST_FILE


def seen(folder: Path) -> set[str]:
    """Return the names of what a sweep writes: runs, checkpoints (whole ones end in /), tables."""
    names = {f"runs/{path.name}" for path in folder.glob("runs/*")}
    for path in folder.glob("work/*/checkpoint-*"):
        whole = "/" if (path / LAST_FILE).is_file() else ""
        names.add(f"work/{path.parent.name}/{path.name}{whole}")
    return names | {path.name for path in folder.glob("*.*")}


def is_unfinished(name: str) -> bool:
    return name.startswith(("runs/.", ".")) or (name.startswith("work/") and not name.endswith("/"))


def is_table(name: str) -> bool:
    return "/" not in name


def is_progress(name: str) -> bool:
    return not is_unfinished(name) and not is_table(name)


def doing(folder: Path, before: set[str]) -> str:
    """Say what a killed sweep was at, from what it had written since it was started."""
    new = seen(folder) - before
    if any(map(is_table, new)):
        return "tables"
    for sign, what in (("runs/.", "publishing a run"), ("work/", "writing a checkpoint")):
        if any(name.startswith(sign) and is_unfinished(name) for name in new):
            return what
    return "training" if any(map(is_progress, new)) else "start-up"

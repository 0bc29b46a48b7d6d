"""Run folders -> one table of runs, kept in ``runs.csv`` beside them.

A run folder holds what the driver wrote when the run ended. ``runs.csv`` is committed, the
folders are not, so both are read and a folder wins over an older row of the same run.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd
import yaml

logger = logging.getLogger(__name__)

SCHEMA = 1
# The C loader where PyYAML was built with it: a sweep has hundreds of these files.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
STATUSES = ("finished", "failed", "diverged")
# Read as text: a run named 12e4567 is not a number.
TEXT = ("run", "status", "error", "profile", "protocol", "backbone", "task", "method",
        "config_hash", "precision", "device", "commit", "python", "torch", "transformers", "peft",
        "datasets", "accelerate", "backbone_revision", "data_fingerprint", "data_revision",
        "data_marks", "ranks", "config",
        )  # fmt: skip
REQUIRED = ("run", "schema", "status", "backbone", "task", "method", "seed")
ORDER = ["backbone", "task", "method", "seed", "run"]


class StoreError(RuntimeError):
    """The runs of a profile cannot be read; the message says what to do."""


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted key: ``{"method": {"k": 8}}`` -> ``{"method.k": 8}``."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_local(value: object) -> bool:
    """A path of one machine, which has no meaning in a committed file."""
    return isinstance(value, str) and (
        PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT, "object"), float_precision="round_trip")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not a table ({error}): remove it and collect again") from error
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}: remove it and collect again")
    newest = pd.to_numeric(frame["schema"], errors="coerce").max()
    if newest > SCHEMA:
        raise StoreError(
            f"{path} was written by a newer version of this project (schema {newest:g}, this code "
            f"reads {SCHEMA}): update your checkout, then repeat the command"
        )
    return frame.fillna(dict.fromkeys([c for c in TEXT if c in frame.columns], ""))


def read_run(folder: Path) -> pd.DataFrame:
    """One finished, failed or diverged run as a frame of one row.

    Adds ``config``: the resolved settings as JSON by dotted key, without paths of this machine.
    Raises StoreError if the folder is not whole or was written by a newer version.
    """
    for name in ("status", "metrics.csv", "config.yaml"):
        if not (folder / name).is_file():
            raise StoreError(f"{folder} has no {name}: remove the folder and repeat the run")
    frame = _read_csv(folder / "metrics.csv")
    status = (folder / "status").read_text(encoding="utf-8").strip()
    if len(frame) != 1 or status not in STATUSES or frame.loc[0, "status"] != status:
        raise StoreError(
            f"{folder} is not whole ({len(frame)} rows, status {status!r}): "
            "remove the folder and repeat the run"
        )
    settings = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), LOADER) or {}
    flat = {key: value for key, value in flatten(settings).items() if not _is_local(value)}
    return frame.assign(config=json.dumps(flat, sort_keys=True, default=str))


def _folders(profile_dir: Path) -> list[Path]:
    runs = profile_dir / "runs"
    if not runs.is_dir():
        return []
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.name.startswith((".", "tmp")))


def _whole_runs(profile_dir: Path) -> list[pd.DataFrame]:
    """Whole folders; one that is not is named and left out, a newer schema stops everything."""
    found = []
    for folder in _folders(profile_dir):
        try:
            found.append(read_run(folder))
        except StoreError as error:
            if "newer version" in str(error):
                raise
            logger.warning("left out: %s", error)
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes it private, a results file is not
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(profile_dir: Path | str) -> pd.DataFrame:
    """Every run of a profile, from its folders and its ``runs.csv``; writes nothing.

    Raises StoreError if there is neither, or if a newer version wrote one of them.
    """
    profile_dir = Path(profile_dir)
    fresh = _whole_runs(profile_dir)
    csv = profile_dir / "runs.csv"
    old = [_read_csv(csv)] if csv.is_file() else []
    if not fresh and not old:
        raise StoreError(
            f"no runs in {profile_dir}: run `make reproduce-table1 PROFILE={profile_dir.name}`, "
            "or name another results folder"
        )
    # Old rows first, so that keeping the last of each run keeps the folder's.
    frame = pd.concat([f for f in (*old, *fresh) if len(f)] or old, ignore_index=True)
    frame = frame.drop_duplicates("run", keep="last").sort_values(ORDER, kind="stable")
    text = {column: "object" for column in TEXT if column in frame.columns}
    return frame.astype(text).reset_index(drop=True)


def collect(profile_dir: Path | str) -> pd.DataFrame:
    """``read``, and write the result to ``runs.csv`` in one step."""
    frame = read(profile_dir)
    write_atomically(Path(profile_dir) / "runs.csv", frame.to_csv(index=False, lineterminator="\n"))
    return frame


def settings(runs: pd.DataFrame) -> list[dict[str, object]]:
    """The resolved settings of each run by dotted key, in the order of ``runs``."""
    if "config" not in runs.columns:
        return [{} for _ in range(len(runs))]
    return [json.loads(text) if text else {} for text in runs["config"].fillna("")]

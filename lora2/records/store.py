"""Run folders -> one table of runs, kept in ``runs.csv`` beside them.

A run folder holds what the driver wrote when the run ended. ``runs.csv`` is committed, the
folders are not, so both are read and a folder wins over an older row of the same run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from lora2.config.parse import YamlError, parse_yaml
from lora2.records.locks import replacing
from lora2.records.validate import bad_names, bad_numbers, leads_outside

logger = logging.getLogger(__name__)

SCHEMA = 1
STATUSES = ("finished", "failed", "diverged")
# Read as text: a run named 12e4567 is not a number.
TEXT = ("run", "status", "error", "profile", "protocol", "backbone", "task", "method",
        "config_hash", "precision", "device", "commit", "python", "torch", "transformers", "peft",
        "datasets", "accelerate", "backbone_revision", "data_fingerprint", "data_revision",
        "data_marks", "ranks", "config", "attention", "notes",
        )  # fmt: skip
REQUIRED = ("run", "schema", "status", "backbone", "task", "method", "seed")
ORDER = ["backbone", "task", "method", "seed", "run"]


class StoreError(RuntimeError):
    """The runs of a profile cannot be read; the message says what to do."""


class SchemaError(StoreError):
    """Rows were written by a version whose columns may mean something else."""


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


def read_csv(path: Path) -> pd.DataFrame:
    """The runs of one CSV alone, whatever folders lie beside it.

    Raises StoreError if it is no table of runs, SchemaError if another version wrote it.
    """
    try:
        # Only an empty field is no value: a run may be called nan.
        frame = pd.read_csv(
            path, dtype=dict.fromkeys(TEXT, "object"), float_precision="round_trip",
            keep_default_na=False, na_values=[""],
        )  # fmt: skip
    except (pd.errors.EmptyDataError, pd.errors.ParserError, ValueError) as error:
        why = " ".join(str(error).split())
        raise StoreError(f"{path} is not a table ({why}): remove it and collect again") from error
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        raise StoreError(f"{path} lacks {', '.join(missing)}: remove it and collect again")
    check_schema(frame["schema"], path)
    if names := bad_names(frame):
        raise StoreError(f"{path}: {names[0]!r} is no name of a run: remove its row")
    if columns := bad_numbers(frame):
        raise StoreError(f"{path}: column {columns[0]} holds what is no number: remove that row")
    return frame.fillna(dict.fromkeys([c for c in TEXT if c in frame.columns], ""))


def check_schema(column: pd.Series, path: Path) -> None:
    """Refuse rows of another schema than SCHEMA.

    Raises StoreError if a row names none, SchemaError if another version wrote one.
    """
    schemas = pd.to_numeric(column, errors="coerce")
    if schemas.isna().any():
        raise StoreError(f"{path} has rows without a schema: remove it and collect again")
    for other in schemas[schemas != SCHEMA]:
        age, way = "a newer", "update your checkout, then repeat the command"
        if other < SCHEMA:
            age, way = "an older", "read it with that version, or move it away and repeat its runs"
        raise SchemaError(
            f"{path} was written by {age} version of this project (schema {other:g}, this code "
            f"reads {SCHEMA}): {way}"
        )


def read_run(folder: Path) -> pd.DataFrame:
    """One finished, failed or diverged run as a frame of one row.

    Adds ``config``: the resolved settings as JSON by dotted key, without paths of this machine.
    Raises StoreError if the folder is not whole, SchemaError if another version wrote it.
    """
    if link := leads_outside(folder):
        raise StoreError(
            f"{folder}: {link} is a link, and a run's files lie in its folder: copy it"
        )
    try:
        frame = read_csv(folder / "metrics.csv")
        status = (folder / "status").read_text(encoding="utf-8").strip()
        settings = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise StoreError(
            f"{folder} has no {missing}: remove the folder and repeat the run"
        ) from error
    except (YamlError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{folder} is damaged ({error}): remove the folder and repeat the run"
        ) from error
    if not isinstance(settings, Mapping):
        raise StoreError(f"{folder}: config.yaml holds no settings: remove it and repeat the run")
    if len(frame) != 1 or status not in STATUSES or frame.loc[0, "status"] != status:
        raise StoreError(
            f"{folder} is not whole ({len(frame)} rows, status {status!r}): "
            "remove the folder and repeat the run"
        )
    if frame.loc[0, "run"] != folder.name:
        raise StoreError(f"{folder} holds run {frame.loc[0, 'run']}: give it that name again")
    flat = {key: value for key, value in flatten(settings).items() if not _is_local(value)}
    return frame.assign(config=json.dumps(flat, sort_keys=True, default=str))


def _read_settled(folder: Path) -> pd.DataFrame:
    """``read_run``, again where the folder of a failed run was replaced while it was read."""
    while True:
        before = _inode(folder)
        try:
            return read_run(folder)
        except StoreError:
            if _inode(folder) == before:
                raise


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _folders(profile_dir: Path) -> list[Path]:
    runs = profile_dir / "runs"
    if not runs.is_dir():
        return []
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.name.startswith((".", "tmp")))


def _whole_runs(profile_dir: Path) -> list[pd.DataFrame]:
    """Whole folders; one that is not is named and left out, another schema stops everything."""
    found = []
    for folder in _folders(profile_dir):
        try:
            found.append(_read_settled(folder))
        except SchemaError:
            raise
        except StoreError as error:
            logger.warning("left out: %s", error)
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step: a reader sees the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(text.encode())


def read(profile_dir: Path | str) -> pd.DataFrame:
    """Every run of a profile, from its folders and its ``runs.csv``; writes nothing.

    Raises StoreError if there is neither, SchemaError if another version wrote one of them.
    """
    profile_dir = Path(profile_dir)
    fresh = _whole_runs(profile_dir)
    csv = profile_dir / "runs.csv"
    old = [read_csv(csv)] if csv.is_file() else []
    if not fresh and not old:
        raise StoreError(
            f"no runs in {profile_dir}: run `make reproduce-table1 PROFILE={profile_dir.name}`, "
            "or name another results folder"
        )
    # Old rows first, so that keeping the last of each run keeps the folder's.
    frame = pd.concat([f for f in (*old, *fresh) if len(f)] or old, ignore_index=True)
    frame = frame.drop_duplicates("run", keep="last").sort_values(ORDER, kind="stable")
    text = {column: "object" for column in TEXT if column in frame.columns}
    frame = frame.astype(text).fillna(dict.fromkeys(text, ""))  # rows older than a column
    return frame.reset_index(drop=True)


def as_csv(frame: pd.DataFrame) -> str:
    """Runs as CSV text. A carriage return in an error would end its row: it becomes a new line."""
    kept = frame.map(lambda value: value.replace("\r", "\n") if isinstance(value, str) else value)
    return kept.to_csv(index=False, lineterminator="\n")


def collect(profile_dir: Path | str) -> pd.DataFrame:
    """``read``, and write the result to ``runs.csv`` in one step; one process at a time.

    Raises StoreError as ``read``; the file is then as it was.
    """
    with replacing(Path(profile_dir) / "runs.csv") as file:
        frame = read(profile_dir)
        file.write(as_csv(frame).encode())
    return frame


def settings(runs: pd.DataFrame) -> list[dict[str, object]]:
    """The resolved settings of each run by dotted key, in the order of ``runs``."""
    if "config" not in runs.columns:
        return [{} for _ in range(len(runs))]
    return [_settings(name, text) for name, text in zip(runs["run"], runs["config"], strict=True)]


def _settings(run: str, text: object) -> dict[str, object]:
    if not isinstance(text, str) or not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"run {run}: its settings in runs.csv cannot be read ({error}): remove its row"
        ) from error
    if not isinstance(found, dict):
        raise StoreError(f"run {run}: its settings in runs.csv are none: remove its row")
    return found

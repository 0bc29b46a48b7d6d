"""Write and read run folders, and ``runs.csv`` beside them, a table with a row for each run.

``runs.csv`` is committed, the folders are not, so both are read, and a folder replaces an older row
of the same run. A results folder may come from anywhere, so everything read is validated.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lora2.config.parse import parse_yaml
from lora2.config.schema import RunConfig, as_tree
from lora2.records.files import replacing

logger = logging.getLogger(__name__)

SCHEMA = 1
STATUSES = ("finished", "failed", "diverged")
HISTORY = "history.csv"
WARM_START = "backbone.warm_start"  # a local path: only its last part, a run's name, is kept
# Read as text: a run named 12e4567 is not a number.
TEXT = ("run", "status", "error", "profile", "protocol", "backbone", "task", "method",
        "config_hash", "precision", "device", "commit", "python", "torch", "transformers", "peft",
        "datasets", "accelerate", "backbone_revision", "data_fingerprint", "data_revision",
        "data_marks", "ranks", "config", "attention", "notes",
        )  # fmt: skip
NUMBERS = re.compile(r"(best|last)_.*|score_(best|last)|step_best|evaluations|steps|seed|params_.*|"
                     r"seconds_per_step|train_seconds|batch_size")  # fmt: skip
REQUIRED = ("run", "schema", "status", "backbone", "task", "method", "seed")
ORDER = ["backbone", "task", "method", "seed", "run"]
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")  # a folder's name, never a path


class StoreError(RuntimeError):
    """The runs of a results folder cannot be read; the message says what to do."""


class NoRuns(StoreError):
    """A results folder is empty or not there."""


class SchemaError(StoreError):
    """Rows were written by a version whose columns may mean something else."""


@contextmanager
def readable(wrong: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of reading, ValueErrors and ``kinds``, as a StoreError with what to do."""
    errors: tuple[type[Exception], ...] = (ValueError, *kinds)  # pandas' are ValueErrors
    try:
        yield
    except errors as error:
        raise StoreError(f"{wrong} ({' '.join(str(error).split())}): {remedy}") from error


def write_run(folder: Path, config: RunConfig, row: Mapping[str, Any]) -> None:
    """Write config.yaml, metrics.csv (one row) and status."""
    (folder / "config.yaml").write_text(yaml.safe_dump(as_tree(config), sort_keys=False))
    (folder / "metrics.csv").write_bytes(as_csv(pd.DataFrame([dict(row)])).encode())
    (folder / "status").write_text(f"{row['status']}\n")


def write_ranks(folder: Path, kept: Mapping[str, list[bool]], targets: Mapping[Any, str]) -> None:
    """Write ranks.csv: a row per singular value (or gate), with its layer and matrix.

    ``kept`` maps module names to what survives; ``targets`` maps our names of matrices to paths.
    """
    names = {path: name for name, path in targets.items()}
    rows: list[tuple[str, int, str, int, int]] = []
    for module, row in kept.items():  # ...encoder.layer.3.attention.self.query
        layer, _, path = module.rpartition(".layer.")[2].partition(".")
        place, path = (int(layer), path) if layer.isdigit() else (-1, module)
        rows += [(module, place, names.get(path, path), i, int(keep)) for i, keep in enumerate(row)]
    frame = pd.DataFrame(rows, columns=["module", "layer", "matrix", "index", "kept"])
    frame.to_csv(folder / "ranks.csv", index=False)


def read_run(folder: Path) -> pd.DataFrame:
    """Read a settled run as a frame of one row, or raise a StoreError that says what to do.

    Adds ``config``: the resolved settings as JSON by dotted key, without local paths.
    """
    try:
        frame = read_csv(folder / "metrics.csv")
        status = (folder / "status").read_text(encoding="utf-8").strip()
        settings = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _damaged(folder, f"has no {Path(error.filename).name}") from error
    except ValueError as error:
        raise _damaged(folder, f"is damaged ({error})") from error
    if not isinstance(settings, Mapping):
        raise _damaged(folder, "has a config.yaml without settings")
    if len(frame) != 1 or status not in STATUSES or frame.loc[0, "status"] != status:
        raise _damaged(folder, f"is not whole ({len(frame)} rows, status {status!r})")
    if frame.loc[0, "run"] != folder.name:
        raise StoreError(f"{folder} holds run {frame.loc[0, 'run']}: rename the folder to that")
    flat = flatten(settings)
    if isinstance(warm_start := flat.get(WARM_START), str):
        flat[WARM_START] = Path(warm_start).name
    flat = {key: value for key, value in flat.items() if not str(value).startswith("/")}
    return frame.assign(config=json.dumps(flat, sort_keys=True, default=str))


def _damaged(folder: Path, why: str) -> StoreError:
    return StoreError(f"{folder} {why}: remove the folder and repeat the run")


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested settings by dotted key: ``{"method": {"k": 8}}`` -> ``{"method.k": 8}``."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_csv(path: Path) -> pd.DataFrame:
    """Read the runs of one CSV, or raise a StoreError that says what to do."""
    with readable(f"{path} is not a table", "remove it and collect again"):
        # Only an empty field is missing: a run may be called nan.
        frame = pd.read_csv(
            path, dtype=dict.fromkeys(TEXT, "object"),
            keep_default_na=False, na_values=[""],
        )  # fmt: skip
    if missing := [column for column in REQUIRED if column not in frame.columns]:
        raise StoreError(f"{path} lacks {', '.join(missing)}: remove it and collect again")
    check_schema(frame["schema"], path)
    for name in frame["run"].fillna("").astype(str):
        if not RUN_NAME.fullmatch(name):
            raise StoreError(f"{path}: {name!r} is not the name of a run: remove its row")
    for column in filter(NUMBERS.fullmatch, frame.columns):
        numbers = pd.to_numeric(frame[column].dropna(), errors="coerce").to_numpy(float)
        if not (abs(numbers) <= 1e300).all():
            raise StoreError(f"{path}: column {column} holds a value that is not a finite number: "
                             "remove that row")  # fmt: skip
    text = [column for column in TEXT if column in frame.columns]
    frame[text] = frame[text].fillna("")
    return frame


def check_schema(column: pd.Series[Any], path: Path) -> None:
    """Raise a SchemaError if another version wrote a row, a StoreError if it has no schema."""
    schemas = pd.to_numeric(column, errors="coerce")
    if schemas.isna().any():
        raise StoreError(f"{path} has rows without a schema: remove it and collect again")
    for other in schemas[schemas != SCHEMA]:
        action = "update your checkout" if other > SCHEMA else "move it away and repeat its runs"
        wrong = f"has rows of schema {other:g}, and this version reads schema {SCHEMA}"
        raise SchemaError(f"{path} {wrong}: {action}")


def read(profile_dir: Path) -> pd.DataFrame:
    """Read every run of a profile, from its folders and its ``runs.csv``, or raise a StoreError."""
    rows = _read_folders(profile_dir / "runs")
    csv = profile_dir / "runs.csv"
    committed = [read_csv(csv)] if csv.is_file() else []
    if not rows and not committed:
        raise NoRuns(
            f"no runs in {profile_dir}: run scripts/reproduce.py first, or name another results "
            f"folder"
        )
    # Committed rows first, so that keeping the last of each run keeps the folder's.
    frame = pd.concat([f for f in (*committed, *rows) if len(f)] or committed, ignore_index=True)
    frame = frame.drop_duplicates("run", keep="last").sort_values(ORDER, kind="stable")
    text = [column for column in TEXT if column in frame.columns]
    frame = frame.astype(dict.fromkeys(text, "object"))
    return frame.fillna(dict.fromkeys(text, "")).reset_index(drop=True)  # rows older than a column


def _read_folders(runs: Path) -> list[pd.DataFrame]:
    """Read the run folders; skip damaged ones with a warning; raise at another schema."""
    rows = []
    for folder in sorted(runs.glob("*")):
        if not folder.is_dir() or folder.name.startswith((".", "tmp")):
            continue
        for again in (False, True):  # the folder of a failed run may be replaced meanwhile
            try:
                rows.append(read_run(folder))
                break
            except SchemaError:
                raise
            except StoreError as error:
                if again:
                    logger.warning("skipped: %s", error)
    return rows


def as_csv(frame: pd.DataFrame) -> str:
    """Return runs as CSV text; a carriage return, which would end a row, becomes a new line."""
    kept = frame.map(lambda value: value.replace("\r", "\n") if isinstance(value, str) else value)
    return kept.to_csv(index=False, lineterminator="\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step: a reader sees the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(text.encode())


def write_pages(pages: Mapping[Path, str], options: Sequence[str], command: str) -> int:
    """Write each page that changed; with the option --check name them, and return 1 if any did."""
    if unknown := {*options} - {"--check"}:
        print(f"unknown: {' '.join(unknown)}; the only option is --check", file=sys.stderr)
        return 2
    check = "--check" in options
    old = {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in pages}
    stale = [path for path, text in pages.items() if old[path] != text]
    for path in stale:
        if check:
            print(f"{path.name} is stale: run {command}", file=sys.stderr)
        else:
            write_atomically(path, pages[path])
    return int(check and bool(stale))


def collect(profile_dir: Path) -> pd.DataFrame:
    """``read`` the runs and replace ``runs.csv`` by them in one step, one process at a time."""
    with replacing(profile_dir / "runs.csv") as file:
        frame = read(profile_dir)
        file.write(as_csv(frame).encode())
    return frame


def settings(runs: pd.DataFrame) -> list[dict[str, object]]:
    """Return the resolved settings of each run by dotted key, in the order of ``runs``."""
    values = list[dict[str, object]]()
    for run, text in zip(runs["run"], runs.get("config", [""] * len(runs)), strict=True):
        wrong = f"run {run}: its settings in runs.csv cannot be read"
        with readable(wrong, "remove its row", TypeError, RecursionError):
            values.append(dict(json.loads(text or "{}")))
    return values

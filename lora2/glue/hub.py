"""GLUE splits from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lora2.glue.checks import GlueDataError
from lora2.glue.tasks import Task
from lora2.hub import PROBE_SECONDS, ask

REPOSITORY = "nyu-mll/glue"

WAYS_OUT = f"""Three ways out:
  connect to a network, or download once where there is one:
    hf download {REPOSITORY} --repo-type dataset --local-dir DIR
  data.dir=DIR            take parquet files from a folder (DIR/<task>/<split>.parquet)
  backbone=embedded       the embedded profile: small made data, no download"""


def read_splits(task: Task, splits: Sequence[str]) -> tuple[list[pa.Table], str | None]:
    """Load ``splits`` of one task with ``datasets.load_dataset``.

    Without a network (or with HF_HUB_OFFLINE=1) the local cache of `datasets` is used. Whether
    there is a network is found out in at most ``PROBE_SECONDS``, because a blocked connection
    would otherwise be retried for a long time.

    Returns the tables, and the data set's revision (a commit hash) if known.

    Raises:
        GlueDataError: no network and no cached copy; the message gives the three ways out.
    """
    from datasets import load_dataset
    from huggingface_hub.constants import is_offline_mode

    revision: str | None = None
    reason: str | None = "HF_HUB_OFFLINE=1 is set"
    if not is_offline_mode():
        revision, reason = ask(_newest_commit)
    try:
        if revision is None:
            with _offline():
                parts = load_dataset(REPOSITORY, task.name, split=list(splits))
        else:
            parts = load_dataset(REPOSITORY, task.name, split=list(splits), revision=revision)
    # `datasets` raises many unrelated kinds here; all mean that the data could not be had.
    except Exception as error:
        why = reason if revision is None else f"{type(error).__name__}: {error}"
        raise GlueDataError(
            f"{task.name} could not be loaded from {REPOSITORY} ({why})"
            f"{' and is not in the local cache' if revision is None else ''}. {WAYS_OUT}"
        ) from error
    return [_table(part) for part in parts], revision or _cached_revision(parts[0])


def _table(part) -> pa.Table:
    table = part.with_format("arrow")[:]
    return table.replace_schema_metadata(part.features.arrow_schema.metadata)


def _newest_commit() -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(REPOSITORY, timeout=PROBE_SECONDS).sha


@contextmanager
def _offline() -> Iterator[None]:
    """Make `datasets` look only into its cache, at once and without retries."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _cached_revision(part) -> str | None:
    """The commit a cached copy came from: `datasets` names the folder of its files after it."""
    files = part.cache_files
    match = re.search(r"[0-9a-f]{40}", Path(files[0]["filename"]).parent.name) if files else None
    return match.group() if match else None

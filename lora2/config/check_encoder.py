"""Check a configuration against its encoder: before loading by its folder, then by the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora2.config.problems import Problem
from lora2.glue.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Facts:
    """An encoder's type, hidden size, and longest input in tokens; None where not known."""

    model_type: str | None = None
    width: int | None = None
    tokens: int | None = None


def folder_facts(backbone: dict[str, Any]) -> Facts:
    """Read the facts of an encoder in a folder or the package; of one on the hub none is known."""
    folder = _folder(backbone)
    if folder is None:
        return Facts()
    config = _json(folder / "config.json")
    longest = _json(folder / "tokenizer_config.json").get(
        "model_max_length", config.get("max_position_embeddings")
    )
    kind, width = config.get("model_type"), config.get("hidden_size")
    return Facts(
        kind if isinstance(kind, str) else None,
        width if isinstance(width, int) else None,
        longest if isinstance(longest, int) else None,
    )


def check_encoder(tree: dict[str, Any], facts: Facts) -> Iterator[Problem]:
    """Yield the ranks above the encoder's width, and a length that it or the task cannot use."""
    for key in ("r", "k", "init_r"):
        rank = tree["method"].get(key)
        if facts.width and isinstance(rank, int) and rank > facts.width:
            allowed = f"at most {facts.width}, the encoder's width: no matrix has a higher rank"
            yield Problem(f"method.{key}", rank, allowed)
    length, task = tree["train"].get("max_seq_length"), TASKS.get(str(tree["task"]))
    if not isinstance(length, int) or isinstance(length, bool):
        return
    if facts.tokens and length > facts.tokens:
        allowed = f"at most the {facts.tokens} tokens that the encoder reads"
        yield Problem("train.max_seq_length", length, allowed)
    special = 4 if facts.model_type in ("roberta", "xlm-roberta") else 3
    if task and len(task.text_columns) == 2 and length < special + 2:
        allowed = f"at least {special + 2}: {special} special tokens and one of either text"
        yield Problem("train.max_seq_length", length, allowed)


def _folder(backbone: dict[str, Any]) -> Path | None:
    name, path = backbone.get("name"), backbone.get("path")
    if path is None:
        from lora2.embedded import ENCODERS, encoder_path

        return encoder_path(name) if name in ENCODERS else None
    folder = Path(str(path))
    return folder if folder.is_dir() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading says what is wrong with the file
    return values if isinstance(values, dict) else {}

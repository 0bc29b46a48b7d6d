"""What the files of an encoder's folder tell about a configuration, without loading any of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora2.experiment.problems import Problem

HEADER_BYTES = 100_000_000  # what safetensors itself takes at most


def check_encoder(tree: dict[str, Any]) -> list[Problem]:
    """Return what does not fit an encoder in a folder; of one on the hub nothing is known yet."""
    folder = _folder(tree["backbone"])
    if folder is None:
        return []
    config = _json(folder / "config.json")
    width, positions = config.get("hidden_size"), config.get("max_position_embeddings")
    longest = _json(folder / "tokenizer_config.json").get("model_max_length", positions)
    found = list(_ranks(tree["method"], width)) if isinstance(width, int) else []
    length = tree["train"].get("max_seq_length")
    if isinstance(longest, int) and isinstance(length, int) and length > longest:
        allowed = f"at most the {longest} tokens that the encoder reads"
        found.append(Problem("train.max_seq_length", length, allowed))
    return found + list(_modules(tree, tensor_names(folder)))


def tensor_names(folder: Path) -> list[str]:
    """Return the names of the weights in a folder, from safetensors' headers or index, else []."""
    index = _json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        return list(index)
    try:
        with open(folder / "model.safetensors", "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < HEADER_BYTES else {}
    except (OSError, ValueError):
        return []  # loading says what is wrong with the file
    return list(header) if isinstance(header, dict) else []


def _folder(backbone: dict[str, Any]) -> Path | None:
    name, path = backbone.get("name"), backbone.get("path")
    if path is None:
        from lora2.embedded.encoders import ENCODERS, encoder_path

        return encoder_path(name) if name in ENCODERS else None
    folder = Path(str(path)).expanduser()
    return folder if folder.is_dir() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading says what is wrong with the file
    return values if isinstance(values, dict) else {}


def _ranks(method: dict[str, Any], width: int) -> Iterator[Problem]:
    for key in ("r", "k", "init_r"):
        rank = method.get(key)
        if isinstance(rank, int) and rank > width:
            allowed = f"at most {width}, the encoder's width: no matrix has a higher rank"
            yield Problem(f"method.{key}", rank, allowed)


def _modules(tree: dict[str, Any], names: list[str]) -> Iterator[Problem]:
    """Yield the paths of targets that no weight of any layer lies under."""
    targets = tree["backbone"].get("targets")
    inner = {match[1] for name in names if (match := re.search(r"layer\.\d+\.(.+)\.weight$", name))}
    if not inner or not isinstance(targets, dict):
        return
    for key, path in targets.items():
        if isinstance(path, str) and path not in inner:
            known = ", ".join(sorted(inner))
            yield Problem(f"backbone.targets.{key}", path, f"a matrix of its layers: {known}")

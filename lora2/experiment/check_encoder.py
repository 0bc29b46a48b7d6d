"""What is known of an encoder without loading it, against a configuration: from its folder's files,
or from what is published of those on the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora2.experiment.known_encoders import HEADS, KNOWN
from lora2.experiment.problems import Problem, nearest
from lora2.glue.tasks import TASKS

MOST_LAYERS = 48  # of an encoder in use
HEADER_BYTES = 100_000_000  # what safetensors itself takes at most


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of an encoder: None or () where not known. ``modules`` are names inside one layer."""

    model_type: str | None = None
    width: int | None = None
    tokens: int | None = None
    modules: tuple[str, ...] = ()


def check_encoder(tree: dict[str, Any]) -> list[Problem]:
    """Return what does not fit the encoder; of one on the hub that is not ours nothing is known."""
    facts = facts_of(tree["backbone"])
    found = list(_ranks(tree["method"], facts.width)) if facts.width else []
    found += _length(tree, facts)
    found += _heads(tree["backbone"], facts.model_type)
    return found + list(_targets(tree, facts.modules)) + list(_own_targets(tree, facts))


def facts_of(backbone: dict[str, Any]) -> Facts:
    """Return what is known of an encoder: from its folder, or by its name on the hub."""
    folder = _folder(backbone)
    if folder is None:
        known = KNOWN.get(str(backbone.get("path")))
        if known is None:
            return Facts()
        return Facts(known.model_type, known.width, known.tokens, known.matrices)
    config = _json(folder / "config.json")
    longest = _json(folder / "tokenizer_config.json").get(
        "model_max_length", config.get("max_position_embeddings")
    )
    inner = (re.search(r"layer\.\d+\.(.+)\.weight$", name) for name in tensor_names(folder))
    return Facts(
        config["model_type"] if isinstance(config.get("model_type"), str) else None,
        config["hidden_size"] if isinstance(config.get("hidden_size"), int) else None,
        longest if isinstance(longest, int) else None,
        tuple(sorted({match[1] for match in inner if match})),
    )


def tensor_names(folder: Path) -> list[str]:
    """Return the names of the weights in a folder, from safetensors' headers or index, else []."""
    index = _json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        return list(index)
    try:
        with open(folder / "model.safetensors", "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return []  # loading says what is wrong with the file
    return list(header) if isinstance(header, dict) else []


def _folder(backbone: dict[str, Any]) -> Path | None:
    name, path = backbone.get("name"), backbone.get("path")
    if path is None:
        from lora2.embedded.encoders import ENCODERS, encoder_path

        return encoder_path(name) if name in ENCODERS else None
    folder = Path(str(path))
    return folder if folder.is_dir() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading says what is wrong with the file
    return values if isinstance(values, dict) else {}


def _length(tree: dict[str, Any], facts: Facts) -> Iterator[Problem]:
    length, task = tree["train"].get("max_seq_length"), TASKS.get(str(tree["task"]))
    if not isinstance(length, int) or isinstance(length, bool):
        return
    if facts.tokens and length > facts.tokens:
        allowed = f"at most the {facts.tokens} tokens that the encoder reads"
        yield Problem("train.max_seq_length", length, allowed)
    if task and len(task.text_columns) == 2:
        special = 4 if facts.model_type in ("roberta", "xlm-roberta") else 3
        if length < special + 2:
            allowed = f"at least {special + 2}: {special} special tokens and one of either text"
            yield Problem("train.max_seq_length", length, allowed)


def _ranks(method: dict[str, Any], width: int) -> Iterator[Problem]:
    for key in ("r", "k", "init_r"):
        rank = method.get(key)
        if isinstance(rank, int) and rank > width:
            allowed = f"at most {width}, the encoder's width: no matrix has a higher rank"
            yield Problem(f"method.{key}", rank, allowed)


def _heads(backbone: dict[str, Any], model_type: str | None) -> Iterator[Problem]:
    heads, given = HEADS.get(str(model_type), ()), backbone.get("head_modules")
    for one in given if heads and isinstance(given, list) else []:
        if one not in heads:
            allowed = f"modules of a {model_type} classifier's head: {', '.join(heads)}"
            yield Problem("backbone.head_modules", one, allowed)


def _targets(tree: dict[str, Any], modules: tuple[str, ...]) -> Iterator[Problem]:
    """Yield the paths of targets that no weight of any layer lies under."""
    targets = tree["backbone"].get("targets")
    if not modules or not isinstance(targets, dict):
        return
    for key, path in targets.items():
        if isinstance(path, str) and path not in modules:
            allowed = f"a matrix of its layers: {', '.join(modules)}"
            yield Problem(f"backbone.targets.{key}", path, allowed)


def _own_targets(tree: dict[str, Any], facts: Facts) -> Iterator[Problem]:
    """Yield PEFT's own names of modules that match none: ends of paths, or a regular expression."""
    args = tree["method"].get("args")
    given = args.get("target_modules") if isinstance(args, dict) else None
    if not facts.modules or given is None or given == "all-linear":
        return
    key, known = "method.args.target_modules", nearest(str(given), facts.modules)
    if isinstance(given, str) and not _matches(given, facts):
        yield Problem(key, given, f"a regular expression for whole paths, or a list; {known}")
    for one in given if isinstance(given, list) else []:
        if not any(f".{name}".endswith(f".{one}") for name in facts.modules):
            known = nearest(str(one), facts.modules)
            yield Problem(key, one, f"the end of a matrix's path; {known}")


def _matches(pattern: str, facts: Facts) -> bool:
    prefix = str(facts.model_type).partition("-v2")[0]
    names = (
        f"{prefix}.encoder.layer.{i}.{name}" for i in range(MOST_LAYERS) for name in facts.modules
    )
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error:
        return False

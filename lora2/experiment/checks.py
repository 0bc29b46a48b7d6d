"""Combinations that no single key forbids, checked before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora2.experiment.problems import Problem

Tree = dict[str, Any]


def check_combinations(tree: Tree, steps: int | None) -> list[Problem]:
    """Return every impossible combination in ``tree``; ``steps`` is the run's length or None.

    A value of the wrong type is skipped here: the schema has already named it.
    """
    found: list[Problem] = []
    sections = ("method", "train", "data", "backbone")
    tree = {key: tree[key] if isinstance(tree[key], dict) else {} for key in sections} | {
        "task": tree["task"]
    }
    checks: tuple[Callable[[Tree, int | None], Iterator[Problem]], ...] = (
        _ranks, _allocation, _length, _warmup, _batch, _data, _backbone,
    )  # fmt: skip
    for check in checks:
        found += check(tree, steps)
    return found


def _int(section: Any, key: str) -> int | None:
    value = section.get(key) if isinstance(section, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ranks(tree: Tree, steps: int | None) -> Iterator[Problem]:
    method = tree["method"]
    start = "init_r" if method.get("name") == "adalora" else "r"
    r, target = _int(method, start), _int(method, "target_r")
    if r is not None and target is not None and target > r:
        yield Problem("method.target_r", target, f"at most method.{start}, which is {r}")


def _allocation(tree: Tree, steps: int | None) -> Iterator[Problem]:
    method = tree["method"]
    tinit, tfinal = _int(method, "tinit"), _int(method, "tfinal")
    target = _int(method, "target_r")
    start = _int(method, "init_r") or _int(method, "r")
    if None in (tinit, tfinal, target, steps) or target == start:
        return
    assert tinit is not None and tfinal is not None and steps is not None
    if tinit + tfinal >= steps:
        yield Problem(
            "method.tinit + method.tfinal",
            tinit + tfinal,
            f"less than the run's {steps} steps, or the ranks are never allocated; "
            f"leave both out to have the published ones fitted to the run",
        )


def _length(tree: Tree, steps: int | None) -> Iterator[Problem]:
    train, method = tree["train"], tree["method"]
    if steps is None:
        return
    warmup = _int(train, "warmup_steps")
    if warmup is not None and warmup >= steps:
        yield Problem("train.warmup_steps", warmup, f"less than the run's {steps} steps")
    stages = _int(method, "xi_stages")
    if stages is not None and stages > steps:
        yield Problem("method.xi_stages", stages, f"at most the run's {steps} steps")


def _warmup(tree: Tree, steps: int | None) -> Iterator[Problem]:
    train = tree["train"]
    if train.get("warmup_ratio") and train.get("warmup_steps"):
        yield Problem("train.warmup_ratio", train["warmup_ratio"], "0 beside train.warmup_steps")
    scheduler = train.get("lr_scheduler")
    if tree["method"].get("name") == "sora" and scheduler not in ("linear", None):
        allowed = "linear with method=sora: its gates follow that schedule"
        yield Problem("train.lr_scheduler", scheduler, allowed)


def _batch(tree: Tree, steps: int | None) -> Iterator[Problem]:
    train = tree["train"]
    batch, micro = _int(train, "batch_size"), _int(train, "micro_batch_size")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if batch is None or batch < 1:
        return
    if batch % world:
        yield Problem("train.batch_size", batch, f"a multiple of the {world} processes launched")
    elif micro is not None and micro >= 1 and (batch // world) % micro:
        yield Problem(
            "train.micro_batch_size", micro, f"a divisor of {batch // world} examples per process"
        )


def _data(tree: Tree, steps: int | None) -> Iterator[Problem]:
    data = tree["data"]
    source, folder = data.get("source"), data.get("dir")
    if source == "folder" and folder is None:
        yield Problem("data.dir", None, "source=folder needs data.dir=DIR (<task>/train.parquet)")
    if isinstance(folder, str):
        if source in ("hub", "embedded"):
            yield Problem("data.dir", folder, f"nothing: data.source={source} reads no folder")
        elif not Path(folder).expanduser().is_dir():
            yield Problem("data.dir", folder, "an existing folder of <task>/<split>.parquet files")
        else:
            yield from _files(Path(folder).expanduser() / str(tree["task"]), data)
    if source == "embedded" and (data.get("train") != "train" or data.get("validation")):
        name = "data.validation" if data.get("train") == "train" else "data.train"
        yield Problem(
            name, tree["data"].get(name[5:]), "the embedded tasks have official splits only"
        )


def _files(folder: Path, data: Any) -> Iterator[Problem]:
    there = sorted(path.stem for path in folder.glob("*.parquet"))
    for key in ("train", "validation"):
        name = data.get(key)
        if isinstance(name, str) and name not in there:
            allowed = (
                f"one of {', '.join(there)}" if there else f"a file in {folder}: there is none"
            )
            yield Problem(f"data.{key}", name, allowed)


def _backbone(tree: Tree, steps: int | None) -> Iterator[Problem]:
    backbone, data = tree["backbone"], tree["data"]
    path = backbone.get("path")
    if backbone.get("profile") == "embedded" and data.get("source") in ("hub", "folder"):
        yield Problem(
            "data.source", data["source"], "the embedded encoder knows only embedded data"
        )
    if isinstance(path, str):
        local = path.startswith((".", "/", "~")) or Path(path).exists()
        if local and not (Path(path).expanduser() / "config.json").is_file():
            yield Problem("backbone.path", path, "a folder with config.json, tokenizer and weights")

"""Combinations that no single key forbids, checked before anything heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora2.config.check_effect import check_effect
from lora2.config.check_encoder import check_encoder, folder_facts
from lora2.config.problems import Problem
from lora2.glue.tasks import TASKS

# A name on the hub: OWNER/NAME, or the few old ones without an owner.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NAME_BYTES = 255  # of one part of a path, on any file system in use
Tree = dict[str, Any]


def check_combinations(
    tree: Tree, steps: int | None, rows: int | None, typed: set[str]
) -> list[Problem]:
    """Return every impossible combination in ``tree``, where the keys ``typed`` were typed.

    ``steps`` is the run's length and ``rows`` what it trains on, None where not known yet. A value
    of the wrong type is skipped here: the schema has already named it.
    """
    found = check_effect(tree, typed)
    sections = ("method", "train", "data", "backbone", "results")
    tree = {key: tree[key] if isinstance(tree[key], dict) else {} for key in sections} | {
        "task": tree["task"], "rows": rows,
    }  # fmt: skip
    checks: tuple[Callable[[Tree, int | None], Iterator[Problem]], ...] = (
        _ranks, _allocation, _length, _warmup, _batch, _data, _backbone, _attention, _targets,
        _gates, _results,
    )  # fmt: skip
    for check in checks:
        found += check(tree, steps)
    found += _rare(tree["train"], steps, typed)
    return found + list(check_encoder(tree, folder_facts(tree["backbone"])))


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
    elif method.get("name") == "lora2":
        rare = _int(method, "deltaT")
        if tfinal > steps - 2:
            yield Problem("method.tfinal", tfinal, f"at most {steps - 2}: a step must be scored")
        if tfinal == 0 and rare and steps % rare:
            allowed = f"a divisor of the run's {steps} steps while method.tfinal is 0"
            yield Problem("method.deltaT", rare, f"{allowed}, or the target is never reached")


def _length(tree: Tree, steps: int | None) -> Iterator[Problem]:
    train, method = tree["train"], tree["method"]
    if steps is None:
        return
    warmup = _int(train, "warmup_steps")
    if warmup is not None and warmup >= steps:
        yield Problem("train.warmup_steps", warmup, f"less than the run's {steps} steps")
    rare = _int(method, "deltaT")
    middle = steps - sum(_int(method, key) or 0 for key in ("tinit", "tfinal"))
    target, start = _int(method, "target_r"), _int(method, "init_r") or _int(method, "r")
    if rare is not None and target not in (None, start) and rare > middle > 0:
        allowed = f"at most the {middle} steps in which ranks are pruned, tinit to -tfinal"
        yield Problem("method.deltaT", rare, allowed)
    stages = _int(method, "xi_stages")
    if stages is not None and stages > steps:
        yield Problem("method.xi_stages", stages, f"at most the run's {steps} steps")


def _rare(train: Any, steps: int | None, typed: set[str]) -> Iterator[Problem]:
    """Yield the intervals that were typed and never come round in this run."""
    for key in ("eval_steps", "save_steps"):
        every = _int(train, key)
        if steps is not None and every is not None and every > steps and f"train.{key}" in typed:
            yield Problem(f"train.{key}", every, f"at most the run's {steps} steps")


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
    if tree["rows"] is not None and batch > tree["rows"] > 0:
        yield Problem("train.batch_size", batch, f"at most the {tree['rows']} training rows")
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
        elif not Path(folder).is_dir():
            yield Problem("data.dir", folder, "an existing folder of <task>/<split>.parquet files")
        else:
            task = str(tree["task"])
            yield from _files(Path(folder) / task, task, data)
    official = TASKS[tree["task"]].validation_splits if tree["task"] in TASKS else ()
    if data.get("train") == "train_subset" and source != "folder":
        yield Problem("data.train", "train_subset", f"train: source={source} has official splits")
    chosen = data.get("validation")
    unofficial = chosen == "validation_unofficial" and source != "folder"
    if unofficial or (chosen is not None and len(official) > 1):
        yield Problem("data.validation", chosen, f"null, for {' and '.join(official)}")
    yield from _holdout(tree, data)


def _holdout(tree: Tree, data: Any) -> Iterator[Problem]:
    held, task, rows = _int(data, "holdout"), TASKS.get(tree["task"]), tree["rows"]
    if held is None or held < 1 or task is None:
        return
    if data.get("validation") is not None:
        allowed = f"null with data.holdout={held}: the validation split is not read"
        yield Problem("data.validation", data["validation"], allowed)
    fewest = max(2, len(task.label_names)) * len(task.validation_splits)
    if held < fewest:
        yield Problem("data.holdout", held, f"at least {fewest} rows for {task.name}")
    elif rows is not None and rows < fewest:
        allowed = f"at most {rows + held - fewest} of the {rows + held} training rows"
        yield Problem("data.holdout", held, allowed)


def _files(folder: Path, task: str, data: Any) -> Iterator[Problem]:
    there = sorted(path.stem for path in folder.glob("*.parquet"))
    official = TASKS[task].validation_splits if task in TASKS else ()
    validation = [data["validation"]] if isinstance(data.get("validation"), str) else official
    validation = validation if data.get("holdout") is None else []
    for key, name in [("train", data.get("train")), *(("validation", one) for one in validation)]:
        shards = any(stem.startswith(f"{name}-0") for stem in there)  # a clone of nyu-mll/glue
        if isinstance(name, str) and name not in there and not shards:
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
        if local and not (Path(path) / "config.json").is_file():
            yield Problem("backbone.path", path, "a folder with config.json, tokenizer and weights")
        elif not local and not HUB_NAME.fullmatch(path):
            yield Problem("backbone.path", path, "an existing folder, or a hub name OWNER/NAME")


def _attention(tree: Tree, steps: int | None) -> Iterator[Problem]:
    kind, targets = tree["backbone"].get("attention"), tree["backbone"].get("targets")
    query = targets.get("query") if isinstance(targets, dict) else None
    if not isinstance(query, str):
        return
    deberta = query.endswith("query_proj")  # so called in DeBERTa's disentangled attention alone
    if kind == "sdpa" and deberta:
        allowed = "eager or null: transformers has no sdpa for DeBERTa's position terms"
        yield Problem("backbone.attention", "sdpa", allowed)


def _targets(tree: Tree, steps: int | None) -> Iterator[Problem]:
    chosen, known = tree["method"].get("target_modules"), tree["backbone"].get("targets")
    if not isinstance(chosen, list) or not isinstance(known, dict):
        return
    for one in dict.fromkeys(str(target) for target in chosen):
        if one not in known:
            yield Problem("backbone.targets", known, f"a path for {one}, a target of the method")
        if chosen.count(one) > 1:
            yield Problem("method.target_modules", chosen, f"{one} once")


def _gates(tree: Tree, steps: int | None) -> Iterator[Problem]:
    xi, xi_max = tree["method"].get("xi"), tree["method"].get("xi_max")
    if isinstance(xi, int | float) and isinstance(xi_max, int | float) and xi_max < xi:
        yield Problem("method.xi_max", xi_max, f"at least method.xi, which is {xi}")


def _results(tree: Tree, steps: int | None) -> Iterator[Problem]:
    folder = tree["results"].get("dir")
    if not isinstance(folder, str) or not folder:
        return
    place = Path(folder).absolute()
    longest = max(place.parts, key=lambda part: len(part.encode()))
    if len(longest.encode()) > NAME_BYTES:
        yield Problem("results.dir", folder, f"names of at most {NAME_BYTES} bytes")
        return
    nearest = next(one for one in (place, *place.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        yield Problem("results.dir", folder, f"a folder: {nearest} is a file")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Problem("results.dir", folder, f"a folder one may write to: {nearest} is not")

"""Refuse impossible combinations of values, each of which alone would be allowed.

Checked from the words and files alone, before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora2.config.problems import Problem
from lora2.glue.tasks import TASKS

# A name on the hub: OWNER/NAME, or the few old ones without an owner.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SCHEDULE = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "importance")


@dataclasses.dataclass(frozen=True)
class Checked:
    """The values of a run by dotted key, without those of a wrong type."""

    values: Mapping[str, Any]
    steps: int | None  # None: not known yet
    rows: int | None  # that it trains on
    typed: set[str]  # keys given on the command line

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key)

    def problem(self, key: str, allowed: str = "", wrong: str = "") -> Problem:
        return Problem(key, self[key], allowed, wrong)


def check_combinations(run: Checked) -> Iterator[Problem]:
    for check in (_no_effect, _pruning, _length, _data, _holdout, _backbone, _results):
        yield from check(run)


def _no_effect(run: Checked) -> Iterator[Problem]:
    """Yield the typed keys that another value leaves without any effect."""
    steps, target = run["train.max_steps"], run["method.target_r"]
    start = run.values.get("method.init_r", run["method.r"])
    cases = (
        (steps is not None, f"train.max_steps is {steps}", "train.max_steps=null beside it",
         ["train.num_train_epochs"]),
        (run["train.lr_scheduler"] == "constant", "train.lr_scheduler is constant",
         "train.lr_scheduler=constant_with_warmup beside it",
         [key for key in ("train.warmup_steps", "train.warmup_ratio") if run[key]]),
        ("method.target_r" in run.values and target in (None, start),
         f"method.target_r is {target}: no rank is pruned", "",
         [f"method.{key}" for key in SCHEDULE]),
        (run["method.init_weights"] == "orthogonal", "method.init_weights is orthogonal", "",
         ["method.init_std"]),
        (run["method.orthogonality"] == "none", "method.orthogonality is none", "",
         ["method.orth_reg_weight", "method.orth_squared"]),
        (run["method.xi_max"] is None, "method.xi_max is null", "", ["method.xi_stages"]),
    )  # fmt: skip
    for holds, reason, allowed, keys in cases:
        for key in keys:
            if holds and key in run.typed and key in run.values:
                yield run.problem(key, allowed, f"has no effect while {reason}")


def _pruning(run: Checked) -> Iterator[Problem]:
    """Yield ranks or thresholds that grow, and a schedule that does not fit the run's steps."""
    start = "method.init_r" if "method.init_r" in run.values else "method.r"
    rank, xi, xi_max = run[start], run["method.xi"], run["method.xi_max"]
    target, tinit, tfinal, every = (
        run[f"method.{key}"] for key in ("target_r", "tinit", "tfinal", "deltaT")
    )
    if None not in (rank, target) and target > rank:
        yield run.problem("method.target_r", f"at most {start}, which is {rank}")
    if None not in (xi, xi_max) and xi_max < xi:
        yield run.problem("method.xi_max", f"at least method.xi, which is {xi}")
    steps = run.steps
    if target == rank or None in (target, tinit, tfinal, every, steps):
        return
    pruned, last = steps - tinit - tfinal, run["method.name"] == "lora2"
    if pruned <= 0:
        allowed = f"less than the run's {steps} steps; without both, the published ones are fitted"
        wrong = "the ranks would never be allocated"
        yield Problem("method.tinit + method.tfinal", tinit + tfinal, allowed, wrong)
    elif every > pruned:
        allowed = f"at most the {pruned} steps in which ranks are pruned"
        yield run.problem("method.deltaT", allowed)
    elif last and tfinal > steps - 2:
        yield run.problem("method.tfinal", f"at most {steps - 2}: a step must be scored")
    elif last and tfinal == 0 and steps % every:
        allowed = f"a divisor of the run's {steps} steps while method.tfinal is 0"
        yield run.problem("method.deltaT", allowed, "the target would never be reached")


def _length(run: Checked) -> Iterator[Problem]:
    """Yield intervals longer than the run, and batches that do not divide."""
    steps, planned = run.steps, {"train.eval_steps", "train.save_steps"} - run.typed
    for key in ("train.warmup_steps", "train.eval_steps", "train.save_steps", "method.xi_stages"):
        less = key == "train.warmup_steps"
        if steps is not None and key not in planned and (run[key] or 0) + less > steps:
            yield run.problem(key, f"{'less than' if less else 'at most'} the run's {steps} steps")
    if run["train.warmup_ratio"] and run["train.warmup_steps"]:
        yield run.problem("train.warmup_ratio", "0 beside train.warmup_steps")
    if run["method.name"] == "sora" and run["train.lr_scheduler"] not in ("linear", None):
        allowed = "linear with method=sora: its gates follow that schedule"
        yield run.problem("train.lr_scheduler", allowed)
    batch, micro = run["train.batch_size"] or 0, run["train.micro_batch_size"]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if batch > (run.rows or 0) > 0:
        yield run.problem("train.batch_size", f"at most the {run.rows} training rows")
    if batch % world:
        yield run.problem("train.batch_size", f"a multiple of the {world} processes launched")
    elif micro is not None and (batch // world) % micro:
        allowed = f"a divisor of {batch // world} examples per process"
        yield run.problem("train.micro_batch_size", allowed)


def _data(run: Checked) -> Iterator[Problem]:
    folder, source, chosen = run["data.dir"], run["data.source"], run["data.validation"]
    splits = TASKS[run["task"]].validation_splits
    if source == "folder" and folder is None:
        yield run.problem("data.dir", "data.dir=DIR with <task>/train.parquet in it")
    if folder is not None and source in ("hub", "embedded"):
        yield run.problem("data.dir", "null", f"data.source={source} reads no folder")
    elif folder is not None and not Path(folder).is_dir():
        yield run.problem("data.dir", "an existing folder of <task>/<split>.parquet files")
    elif folder is not None:
        place, scored = Path(folder) / run["task"], [chosen] if chosen else splits
        present = sorted(path.stem for path in place.glob("*.parquet"))
        names = [("data.train", run["data.train"])]
        names += [("data.validation", n) for n in scored if run["data.holdout"] is None]
        for key, name in names:
            shards = any(stem.startswith(f"{name}-0") for stem in present)  # of nyu-mll/glue
            if name is not None and name not in present and not shards:
                yield Problem(key, name, ", ".join(present), f"{place} has no {name}.parquet")
    if run["data.train"] == "train_subset" and source != "folder":
        yield run.problem("data.train", f"train: source={source} has official splits")
    unofficial = chosen == "validation_unofficial" and source != "folder"
    if unofficial or (chosen is not None and len(splits) > 1):
        yield run.problem("data.validation", f"null, for {' and '.join(splits)}")


def _holdout(run: Checked) -> Iterator[Problem]:
    held, task, rows = run["data.holdout"], TASKS[run["task"]], run.rows
    if held is None:
        return
    if run["data.validation"] is not None:
        yield run.problem("data.validation", f"null with data.holdout={held}: it is not read")
    fewest = max(2, len(task.label_names)) * len(task.validation_splits)
    if held < fewest:
        yield run.problem("data.holdout", f"at least {fewest} rows for {task.name}")
    elif rows is not None and rows < fewest:
        allowed = f"at most {max(0, rows + held - fewest)} of the {rows + held} training rows"
        yield run.problem("data.holdout", allowed)


def _backbone(run: Checked) -> Iterator[Problem]:
    """Yield an encoder that is not there, and targets or attention that it does not have."""
    path, source = run["backbone.path"], run["data.source"]
    if run["backbone.profile"] == "embedded" and source in ("hub", "folder"):
        wrong = "the embedded encoder can read embedded data only"
        yield run.problem("data.source", "embedded", wrong)
    if run["backbone.revision"] is not None and (path is None or Path(path).is_dir()):
        yield run.problem("backbone.revision", "null", "a folder has no revisions")
    local = path is not None and (path.startswith((".", "/", "~")) or Path(path).exists())
    if local and not (Path(path) / "config.json").is_file():
        yield run.problem("backbone.path", "a folder with config.json, tokenizer and weights")
    elif path is not None and not local and not HUB_NAME.fullmatch(path):
        yield run.problem("backbone.path", "an existing folder, or a hub name OWNER/NAME")
    paths, chosen = run["backbone.targets"] or {}, run["method.target_modules"] or []
    if run["backbone.attention"] == "sdpa" and paths.get("query", "").endswith("query_proj"):
        allowed = "eager or null: transformers has no sdpa for DeBERTa's position terms"
        yield run.problem("backbone.attention", allowed)
    for name in chosen:
        if paths and name not in paths:
            yield run.problem("backbone.targets", f"a path for {name}, a target of the method")


def _results(run: Checked) -> Iterator[Problem]:
    if not run["results.dir"]:
        return
    place = Path(run["results.dir"]).absolute()
    nearest = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        yield run.problem("results.dir", "a folder", f"{nearest} is a file")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield run.problem("results.dir", "a folder you may write to", f"{nearest} is not one")

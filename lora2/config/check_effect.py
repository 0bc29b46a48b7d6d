"""Typed words that another value, typed or not, would leave without any effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora2.config.problems import Problem

SCHEDULE = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "importance")


def check_effect(tree: dict[str, Any], typed: set[str]) -> list[Problem]:
    """Return the keys among ``typed`` that do nothing beside the other values of ``tree``."""
    train, backbone, method = (
        tree[key] if isinstance(tree[key], dict) else {} for key in ("train", "backbone", "method")
    )
    found = [*_length(train), *_warmup(train), *_pruning(method), *_orthogonality(method)]
    found = [problem for problem in found if problem.key in typed]
    path, revision = backbone.get("path"), backbone.get("revision")
    if revision is not None and (path is None or Path(str(path)).is_dir()):
        found.append(Problem("backbone.revision", revision, "null: a folder has no revisions"))
    return found


def _length(train: dict[str, Any]) -> Iterator[Problem]:
    steps = train.get("max_steps")
    if steps is not None:
        allowed = f"nothing while train.max_steps is {steps}; add train.max_steps=null"
        yield Problem("train.num_train_epochs", train.get("num_train_epochs"), allowed)


def _warmup(train: dict[str, Any]) -> Iterator[Problem]:
    if train.get("lr_scheduler") != "constant":
        return
    for key in ("warmup_steps", "warmup_ratio"):
        if train.get(key):
            allowed = "0 with train.lr_scheduler=constant; constant_with_warmup has a warm-up"
            yield Problem(f"train.{key}", train[key], allowed)


def _pruning(method: dict[str, Any]) -> Iterator[Problem]:
    """Yield the schedule of a budget that never shrinks."""
    target, start = method.get("target_r"), method.get("init_r", method.get("r"))
    if "target_r" not in method or target not in (None, start):
        return
    for key in SCHEDULE:
        if key in method:
            allowed = f"nothing while method.target_r is {target}: no rank is pruned"
            yield Problem(f"method.{key}", method[key], allowed)


def _orthogonality(method: dict[str, Any]) -> Iterator[Problem]:
    if method.get("init_weights") == "orthogonal":
        allowed = "nothing with method.init_weights=orthogonal"
        yield Problem("method.init_std", method.get("init_std"), allowed)
    terms, weight = method.get("orthogonality"), method.get("orth_reg_weight")
    if terms == "none":
        for key in ("orth_reg_weight", "orth_squared"):
            allowed = "nothing with method.orthogonality=none"
            yield Problem(f"method.{key}", method.get(key), allowed)
    elif terms is not None and weight == 0 and not isinstance(weight, bool):
        for key in ("orthogonality", "orth_squared"):
            allowed = "nothing while method.orth_reg_weight is 0"
            yield Problem(f"method.{key}", method.get(key), allowed)

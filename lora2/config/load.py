"""From typed words to one resolved, checked, hashed run: read -> overlay -> type -> check."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora2.config.checks import Checked, check_combinations
from lora2.config.parse import CONFIGS, GROUPS, options, parse_words, read_yaml
from lora2.config.problems import (
    Problem,
    ProblemList,
    check_section,
    field_names,
    unknown,
    unknown_keys,
)
from lora2.config.schema import METHODS, SECTIONS, Identity, Peft, RunConfig, Train, build
from lora2.glue.tasks import TASKS

# What a patch's ``for`` may ask for; the backbones are files.
CONDITIONS = {
    "protocol": ["public", "equal"], "ranks": ["paper", "public"], "method": [*METHODS, "peft"],
    "task": sorted(TASKS),
}  # fmt: skip
# Step counts of the published recipe, fitted to a run's length; evaluations never become rarer.
FITTED = ("method.tinit", "method.tfinal", "method.deltaT", "train.warmup_steps")
SHORTENED = ("train.eval_steps",)
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A checked run, the notes a user should see, and its length (None: known after loading)."""

    config: RunConfig
    notes: list[str]
    steps: int | None


def resolve(argv: Sequence[str], configs: Path = CONFIGS) -> Resolved:
    """Turn command-line words (``task=rte method=lora2 method.k=1``) into a checked run.

    Raises ConfigError: naming every key at fault, its value and what is allowed.
    """
    choices, typed = parse_words(argv, configs)
    files = read(choices, configs)
    method, encoder = files["method"]["name"], files["backbone"]
    given = (typed.get("protocol"), files.get("protocol"), encoder.get("protocol"))
    facts = {  # what the conditions of patches are compared with, as it was given
        "task": files["task"]["name"], "backbone": encoder["name"],
        "method": method if method in METHODS else "peft",
        "protocol": next((value for value in given if value is not None), None),
        "ranks": typed.get("ranks", files.get("ranks")),
    }  # fmt: skip
    published = overlay(files, facts, GROUPS[:2])
    tree = overlay(files, facts, GROUPS)
    notes = apply_words(tree, typed, files["method"])
    problems = ProblemList(check_types(tree))
    problems += check_section("train", Train, published["train"])
    steps = rows = None
    if not {problem.key.split(".")[0] for problem in problems} & {"task", "train", "data"}:
        rows = train_rows(tree)
        steps = total_steps(tree["train"], rows)
        notes += fit(tree, published, set(typed), rows)
    if tree["task"] in TASKS:
        values = {"task": tree["task"]}
        for section in (*SECTIONS, "method"):
            values |= {f"{section}.{key}": value for key, value in tree[section].items()}
        for problem in problems:
            values.pop(".".join(problem.key.split(".")[:2]), None)
        # An interval of a plan binds only if no later word cuts the run short.
        words = list(typed)
        cut = words.index("train.max_steps") if "train.max_steps" in words else 0
        binding = set(words) - {"train.eval_steps", "train.save_steps"}.intersection(words[:cut])
        problems += check_combinations(Checked(values, steps, rows, binding))
    problems.raise_if_any()
    return Resolved(build(tree), notes, steps)


_mapping = functools.lru_cache(read_yaml)  # a table asks for the same files for every cell


def read(choices: Mapping[str, str], configs: Path = CONFIGS) -> Tree:
    """Return configs/config.yaml with the files of the chosen task, method and backbone in it."""
    base = _mapping(configs / "config.yaml")
    encoders, default = options("backbone", configs), base.get("backbone")
    problems = ProblemList(unknown_keys("config.yaml: ", base, field_names(RunConfig)))
    for section in SECTIONS.keys() - GROUPS:
        if not isinstance(values := base.get(section), dict):
            problems += check_section(section, SECTIONS[section], values)
    if default not in encoders:
        problems.append(unknown("config.yaml: backbone", default, encoders))
    problems.raise_if_any()
    chosen = {"backbone": default, **choices}
    files = base | {group: _mapping(configs / group / f"{chosen[group]}.yaml") for group in chosen}
    for group, name in chosen.items():
        given = files[group].get("name")  # another file of a method that is ours has its name
        if given != name and not (group == "method" and str(given) in METHODS):
            place = f"{group}/{name}.yaml: name"
            problems.append(Problem(place, given, f"{name}, as the file is called"))
    problems.raise_if_any()
    ProblemList(_check_files(files, {**CONDITIONS, "backbone": encoders})).raise_if_any()
    return files


def _check_files(files: Tree, conditions: Mapping[str, list[str]]) -> Iterator[Problem]:
    """Yield what is wrong in a task's file, and patches that could never apply."""
    task = files["task"]
    yield from unknown_keys("task.", task, ("name", "train", "settings"))
    yield from check_section("task.train", Train, task.get("train") or {}, whole=False)
    for group in GROUPS:
        where, patches = f"{group}.settings", files[group].get("settings") or []
        if not isinstance(patches, list):
            yield Problem(where, patches, "a list of patches")
            continue
        for patch in patches:
            yield from _check_patch(where, patch, conditions)


def _check_patch(where: str, patch: Any, conditions: Mapping[str, list[str]]) -> Iterator[Problem]:
    parts = (patch.get("for"), patch.get("method", {})) if isinstance(patch, dict) else ()
    if not parts or not all(isinstance(part, dict) for part in parts):
        allowed = "each entry needs for: {...}, and seed: N, method: {...} or train: {...}"
        yield Problem(where, patch, allowed)
        return
    yield from unknown_keys(f"{where}.", patch, ("for", "seed", "method", "train"))
    yield from unknown_keys(f"{where}.for.", patch["for"], conditions)
    for key in patch["for"].keys() & conditions.keys():
        for value in _as_list(patch["for"][key]):
            if value not in conditions[key]:
                yield unknown(f"{where}.for.{key}", value, conditions[key])
    yield from check_section(f"{where}.train", Train, patch.get("train", {}), whole=False)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def overlay(files: Tree, facts: Tree, groups: Sequence[str]) -> Tree:
    """Return the values of ``files`` laid over each other, for a run of these ``facts``.

    Later wins: config.yaml and the method's own keys, the task's ``train`` block, then the
    ``settings`` of ``groups`` in their order, as far as their conditions hold.
    """
    tree = copy.deepcopy({key: value for key, value in files.items() if key != "task"})
    tree["train"].update(files["task"].get("train") or {})
    for patch in (patch for group in groups for patch in files[group].get("settings") or []):
        if all(facts[key] in _as_list(value) for key, value in patch["for"].items()):
            tree["seed"] = patch.get("seed", tree.get("seed"))
            for section in ("method", "train"):
                for key, value in copy.deepcopy(patch.get(section, {})).items():
                    both = isinstance(value, dict) and isinstance(tree[section].get(key), dict)
                    tree[section][key] = {**tree[section][key], **value} if both else value
    for group in ("method", "backbone"):
        tree[group].pop("settings", None)
    tree["backbone"].pop("protocol", None)  # one of the facts; typed, it is an unknown key
    return tree | {key: facts[key] for key in ("task", "protocol", "ranks")}


def set_value(tree: Tree, dotted: str, value: Any) -> None:
    """Set ``tree[a][b] = value`` for the key ``a.b``, making levels that are missing."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def apply_words(tree: Tree, typed: Mapping[str, Any], file: Tree) -> list[str]:
    """Set the typed values in ``tree`` and decide what is left open; return notes to show.

    Under protocol ``equal`` another rank than the method ``file``'s gets the same lora_alpha /
    rank: else the size of a step would change with the rank, and one learning rate not fit both.
    """
    for key, value in typed.items():
        if key != "protocol":  # one of the facts
            set_value(tree, key, value)
    if typed.get("train.warmup_ratio") and "train.warmup_steps" not in typed:
        tree["train"]["warmup_steps"] = 0  # the typed ratio takes the place of the steps
    data, profile = tree["data"], tree["backbone"].get("profile")
    if data.get("source") is None:
        packaged = "embedded" if profile == "embedded" else "hub"
        data["source"] = "folder" if data.get("dir") is not None else packaged
    if tree["results"].get("dir") is None:
        tree["results"]["dir"] = f"results/{profile}"
    paths = ("data.dir", "backbone.path", "backbone.warm_start", "results.dir")
    for section, key in (path.split(".") for path in paths):
        if isinstance(tree[section].get(key), str):
            tree[section][key] = os.path.expanduser(tree[section][key])
    method, name = tree["method"], "init_r" if "init_r" in file else "r"
    rank, usual, alpha = method.get(name), file.get(name), method.get("lora_alpha")
    numbers = all(isinstance(x, int | float) and x > 0 for x in (rank, usual, alpha))
    if "method.lora_alpha" in typed or tree["protocol"] != "equal" or not numbers or rank == usual:
        return []
    method["lora_alpha"] = alpha * rank / usual
    return [
        f"method.lora_alpha: {alpha:g} -> {method['lora_alpha']:g} (protocol equal: the same "
        f"lora_alpha / {name} at {name}={rank} as at {usual})"
    ]


def check_types(tree: Tree) -> Iterator[Problem]:
    """Yield every key that is unknown or missing, and every value of a wrong type or range."""
    yield from unknown_keys("", tree, field_names(RunConfig))
    kind = METHODS.get(tree["method"]["name"], Peft)
    for section, keys in {**SECTIONS, "method": kind}.items():
        yield from check_section(section, keys, tree[section])
    yield from check_section("", Identity, {key: tree.get(key) for key in field_names(Identity)})


def train_rows(tree: Tree) -> int | None:
    """Return how many training examples a run sees per epoch, or None when only loading tells.

    Below one where more rows are to be held out than there are, which ``checks`` refuses.
    """
    data, task, rows = tree["data"], tree["task"], None
    if data["source"] == "embedded":
        from lora2.embedded.grammar import ROWS

        rows = ROWS[task][0]
    elif data["train"] == "train":
        rows = TASKS[task].rows["train"]
    elif data["source"] == "folder" and data["dir"]:
        from pyarrow import ArrowException, parquet

        path = Path(data["dir"]) / task / f"{data['train']}.parquet"
        with contextlib.suppress(ArrowException, OSError):  # loading reports what is wrong
            rows = int(parquet.read_metadata(path).num_rows)
    if rows is None:
        return None
    return min(rows, data["train_rows"] or rows) - (data.get("holdout") or 0)


def total_steps(train: Tree, rows: int | None) -> int | None:
    """Return the optimiser steps of a run: ``max_steps``, else epochs * ceil(rows / batch_size)."""
    if train["max_steps"] is not None:
        return int(train["max_steps"])
    if rows is None:
        return None
    return max(1, math.ceil(train["num_train_epochs"] * math.ceil(rows / train["batch_size"])))


def fit(tree: Tree, published: Tree, typed: set[str], rows: int | None) -> list[str]:
    """Scale the step counts of ``tree`` in place to its own length; return a note for each.

    ``published`` is the same tree before encoder and command line changed it: its step counts
    belong to its own steps on the official training set. What was typed or changed is left alone.
    """
    steps = total_steps(tree["train"], rows)
    recipe = total_steps(published["train"], TASKS[published["task"]].rows["train"])
    if steps is None or recipe is None:
        return []
    notes = []
    for key in FITTED + SHORTENED:
        section, name = key.split(".")
        value = tree[section].get(name)
        changed = key in typed or value != published[section].get(name)
        if changed or not isinstance(value, int) or value < 1:
            continue
        length = min(steps, recipe) if key in SHORTENED else steps
        if (fitted := max(1, value * length // recipe)) != value:
            tree[section][name] = fitted
            notes.append(
                f"{key}: {value} -> {fitted} (for {recipe:,} steps, this run has {steps:,})"
            )
    return notes

"""The way from typed words to one resolved, checked, hashed run configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lora2.config import compose
from lora2.config.checks import check_combinations
from lora2.config.layers import apply_layers, conditions, set_value
from lora2.config.problems import ConfigError, Problem, check_section, field_names, nearest
from lora2.config.schedule import fit, total_steps, train_rows
from lora2.config.schema import METHODS, SECTIONS, Identity, Peft, RunConfig, Train
from lora2.glue.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A checked run, the notes a user should see, and its length (None: known after loading)."""

    config: RunConfig
    notes: list[str]
    steps: int | None


def resolve(argv: list[str], configs: Path = compose.CONFIGS) -> Resolved:
    """Turn command-line words (``task=rte method=lora2 method.k=1``) into a checked run.

    Raises:
        ConfigError: naming every key at fault, its value and what is allowed.
    """
    choices, values = compose.parse(argv, configs)
    raw = compose.load(choices, configs)
    known = condition_values(configs)
    protocol = _typed_or(values.get("protocol"), raw["protocol"])
    protocol = _typed_or(protocol, raw["backbone"].get("protocol"))
    ranks = values.get("ranks", raw["ranks"])
    facts = conditions(
        task=choices["task"],
        method=raw["method"]["name"],
        backbone=raw["backbone"]["name"],
        protocol=protocol if protocol in known["protocol"] else "equal",  # refused below
        ranks=ranks if ranks in known["ranks"] else "paper",
    )
    no_encoder = {**raw, "backbone": {**raw["backbone"], "settings": []}}
    published = apply_layers(no_encoder, facts, known)
    tree = apply_layers(raw, facts, known)
    tree["backbone"].pop("protocol", None)  # read above; typed, it is an unknown key
    for key, value in values.items():
        set_value(tree, key, value)
    typed_ratio = values.get("train.warmup_ratio") and "train.warmup_steps" not in values
    if typed_ratio and isinstance(tree["train"], dict):
        tree["train"]["warmup_steps"] = 0  # the ratio that was typed takes the place of the steps
    tree["protocol"], tree["ranks"] = protocol, ranks
    _fill_defaults(tree)
    kept = [] if "method.lora_alpha" in values else _keep_scale(tree, raw["method"])
    resolved = _check(tree, published, set(values), _overtaken(list(values)))
    return dataclasses.replace(resolved, notes=kept + resolved.notes)


def _keep_scale(tree: dict[str, Any], file: dict[str, Any]) -> list[str]:
    """Under ``equal``, give another rank than the method ``file``'s the same lora_alpha / rank.

    Else the size of a step would change with the rank, and one learning rate would not fit both.
    """
    method = tree["method"]
    key = "init_r" if "init_r" in file else "r"
    rank, own, alpha = method.get(key), file.get(key), method.get("lora_alpha")
    numbers = all(isinstance(x, int | float) and x > 0 for x in (rank, own, alpha))
    if tree["protocol"] != "equal" or not numbers or rank == own:
        return []
    method["lora_alpha"] = alpha * rank / own
    return [
        f"method.lora_alpha: {alpha:g} -> {method['lora_alpha']:g} (protocol equal: the same "
        f"lora_alpha / {key} at {key}={rank} as at {own})"
    ]


def _overtaken(typed: list[str]) -> set[str]:
    """Return the intervals typed before the run's length: those of a plan that is cut short."""
    if "train.max_steps" not in typed:
        return set()
    return {"train.eval_steps", "train.save_steps"} & set(typed[: typed.index("train.max_steps")])


def condition_values(configs: Path) -> dict[str, list[str]]:
    """Return what each condition of a patch (``for: {method: lora2}``) may be."""
    return {
        "protocol": ["public", "equal"],
        "ranks": ["paper", "public"],
        "method": [*METHODS, "peft"],
        "task": sorted(TASKS),
        "backbone": compose.options("backbone", configs),
    }


def _typed_or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _fill_defaults(tree: dict[str, Any]) -> None:
    """Decide what the files leave open, and what ~ in a path stands for."""
    data, profile = tree["data"], tree["backbone"].get("profile")
    if isinstance(data, dict) and data.get("source") is None:
        embedded = profile == "embedded" and data.get("dir") is None
        data["source"] = "embedded" if embedded else "folder" if data.get("dir") else "hub"
    if isinstance(tree["results"], dict) and tree["results"].get("dir") is None:
        tree["results"]["dir"] = f"results/{profile}"
    for section, key in (("data", "dir"), ("backbone", "path"), ("results", "dir")):
        if isinstance(tree[section], dict) and isinstance(tree[section].get(key), str):
            tree[section][key] = os.path.expanduser(tree[section][key])


def _check(
    tree: dict[str, Any], published: dict[str, Any], explicit: set[str], overtaken: set[str]
) -> Resolved:
    known = field_names(RunConfig)
    problems = [
        Problem(key, tree[key], f"unknown key; {nearest(key, known)}")
        for key in tree
        if key not in known
    ]
    for section, kind in SECTIONS.items():
        problems += check_section(section, kind, tree[section])
    kind = METHODS.get(tree["method"].get("name"), Peft)
    problems += check_section("method", kind, tree["method"])
    notes: list[str] = []
    steps, rows = None, None
    if not any(problem.key.startswith("train") for problem in problems):
        problems += check_section("train", Train, published["train"])
    if not any(problem.key.startswith(("train", "data")) for problem in problems):
        rows = train_rows(tree)
        steps = total_steps(tree["train"], rows)
        notes = fit(tree, published, explicit, rows)
        if steps is None and tree["data"]["source"] == "hub":
            allowed = "a number: the size of this training split is not known before loading"
            problems.append(Problem("train.max_steps", None, allowed))
    problems += check_combinations(tree, steps, rows, explicit - overtaken)
    problems += check_section("", Identity, {key: tree[key] for key in field_names(Identity)})
    if problems:
        raise ConfigError(problems)
    return Resolved(build(tree), notes, steps)


def build(tree: dict[str, Any]) -> RunConfig:
    """Return the typed configuration of a tree that was checked before (a run's config.yaml)."""
    method_kind = METHODS.get(tree["method"]["name"], Peft)
    sections = {section: kind(**tree[section]) for section, kind in SECTIONS.items()}
    return RunConfig(**{**tree, **sections, "method": method_kind(**tree["method"])})


def as_tree(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain nested dicts."""
    return dataclasses.asdict(config)


def config_hash(config: RunConfig) -> str:
    """Return ten hex digits that name a run: sha256 of its configuration.

    Where results are written is left out, and so are keys that are None, so that a new optional
    key does not rename the runs that do not use it.
    """
    tree = {key: value for key, value in as_tree(config).items() if key != "results"}
    text = json.dumps(_without_none(tree), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: RunConfig) -> str:
    """Return the run folder's name: task, method, seed and hash."""
    return f"{config.task}-{config.method.name}-s{config.seed}-{config_hash(config)}"


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return tree

"""From the command line to one nested dict: Hydra's groups and overrides, then our layers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lora2.experiment.problems import ConfigError, Problem, nearest
from lora2.experiment.schema import METHODS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = ("task", "method", "backbone")
PATCH_KEYS = ("for", "seed", "method", "train")
CONDITIONS = ("protocol", "method", "task", "backbone", "ranks")


def options(group: str, configs: Path = CONFIGS) -> list[str]:
    """Return what ``group=`` may name: the YAML files of configs/<group>."""
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def parse(argv: list[str], configs: Path = CONFIGS) -> tuple[dict[str, str], dict[str, Any]]:
    """Split command-line words into group choices and value overrides (dotted key -> value).

    Raises:
        ConfigError: a word is no ``key=value``, a group's option is unknown, or task is missing.
    """
    choices: dict[str, str] = {}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for word in argv:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            problems.append(Problem("command line", word, "every word must read key=value"))
            continue
        key, value = override.key_or_group, override.value()
        if not _is_plain(override):
            problems.append(Problem(key, word, "one plain key=value; grids: scripts/reproduce.py"))
        elif key not in GROUPS:
            values[key] = value
        elif value in options(key, configs):
            choices[key] = str(value)
        else:
            problems.append(Problem(key, value, nearest(str(value), options(key, configs))))
    for group in ("task", "method"):
        if group not in choices and not any(problem.key == group for problem in problems):
            allowed = ", ".join(options(group, configs))
            problems.append(Problem(group, None, f"say {group}=NAME; allowed: {allowed}"))
    if problems:
        raise ConfigError(problems + _unknown_roots(values))
    return choices, values


def load(choices: dict[str, str], configs: Path = CONFIGS) -> dict[str, Any]:
    """Compose configs/config.yaml with the chosen groups by Hydra; return plain containers.

    Raises:
        ConfigError: a YAML file cannot be read or composed.
    """
    return _copy(_load(tuple(f"{group}={choices[group]}" for group in sorted(choices)), configs))


@functools.lru_cache
def _load(words: tuple[str, ...], configs: Path) -> dict[str, Any]:
    # Cached: a table asks for the same few dozen compositions again for every seed and row.
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(configs)):
            composed = compose(config_name="config", overrides=list(words))
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([Problem(str(configs), list(words), str(error).strip())]) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def apply_layers(tree: dict[str, Any], facts: dict[str, str]) -> dict[str, Any]:
    """Merge what task, method and backbone files say for these ``facts`` (conditions' values).

    Order, later wins: config.yaml and the method's own keys, the task's ``train`` block, then the
    ``settings`` of method, task and backbone. Returns a new tree without any ``settings``.

    Raises:
        ConfigError: a patch holds an unknown condition or key.
    """
    merged = {key: _copy(value) for key, value in tree.items() if key != "task"}
    merged["train"].update(tree["task"].get("train", {}))
    problems: list[Problem] = []
    for group in ("method", "task", "backbone"):
        for patch in tree[group].get("settings") or []:
            problems += _check_patch(group, patch)
            if not problems and _holds(patch["for"], facts):
                _merge(merged, {key: patch[key] for key in PATCH_KEYS[1:] if key in patch})
        if group != "task":
            merged[group].pop("settings", None)
    unknown = set(tree["task"]) - {"name", "train", "settings"}
    problems += [
        Problem(f"task.{key}", tree["task"][key], nearest(key, ("name", "train", "settings")))
        for key in sorted(unknown)
    ]
    if problems:
        raise ConfigError(problems)
    merged["task"] = tree["task"]["name"]
    return merged


def set_value(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``tree[a][b] = value`` for the key ``a.b``, making levels that are missing."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def conditions(task: str, method: str, backbone: str, protocol: str, ranks: str) -> dict[str, str]:
    """Return the facts that a patch's ``for`` may name; a method of PEFT's counts as ``peft``."""
    kind = method if method in METHODS else "peft"
    return {
        "task": task, "method": kind, "backbone": backbone, "protocol": protocol, "ranks": ranks,
    }  # fmt: skip


def _is_plain(override: Override) -> bool:
    changes = override.is_delete() or override.is_add() or override.is_force_add()
    return not (changes or override.is_sweep_override() or override.package)


def _unknown_roots(values: dict[str, Any]) -> list[Problem]:
    known = ("task", "method", "backbone", "protocol", "ranks", "seed", "train", "data", "results")
    return [
        Problem(key, value, f"unknown key; {nearest(key.split('.')[0], known)}")
        for key, value in values.items()
        if key.split(".")[0] not in known
    ]


def _check_patch(group: str, patch: Any) -> list[Problem]:
    where = f"{group}.settings"
    if not isinstance(patch, dict) or not isinstance(patch.get("for"), dict):
        return [Problem(where, patch, f"each entry needs for: {{...}} and {PATCH_KEYS[1:]}")]
    bad = [
        Problem(f"{where}.{k}", patch[k], nearest(k, PATCH_KEYS))
        for k in patch
        if k not in PATCH_KEYS
    ]
    return bad + [
        Problem(f"{where}.for.{key}", patch["for"][key], nearest(key, CONDITIONS))
        for key in patch["for"]
        if key not in CONDITIONS
    ]


def _holds(wanted: dict[str, Any], facts: dict[str, str]) -> bool:
    return all(
        facts[key] in (allowed if isinstance(allowed, list) else [allowed])
        for key, allowed in wanted.items()
    )


def _merge(tree: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value

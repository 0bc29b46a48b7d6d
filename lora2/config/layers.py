"""What the files of a run say for its task, method and encoder, laid over each other."""

from __future__ import annotations

from typing import Any

from lora2.config.problems import ConfigError, Problem, check_section, field_names, nearest
from lora2.config.schema import METHODS, Peft, Train

GROUPS = ("task", "method", "backbone")
PATCH_KEYS = ("for", "seed", "method", "train")
TASK_KEYS = ("name", "train", "settings")
# What a patch may change, whichever method a run takes: a slip in a patch of another is seen too.
PATCHED = {
    "train": field_names(Train),
    "method": sorted({key for kind in (*METHODS.values(), Peft) for key in field_names(kind)}),
}


def conditions(task: str, method: str, backbone: str, protocol: str, ranks: str) -> dict[str, str]:
    """Return the facts that a patch's ``for`` may name; a method of PEFT's counts as ``peft``."""
    kind = method if method in METHODS else "peft"
    return {
        "task": task, "method": kind, "backbone": backbone, "protocol": protocol, "ranks": ranks,
    }  # fmt: skip


def apply_layers(
    tree: dict[str, Any], facts: dict[str, str], values: dict[str, list[str]]
) -> dict[str, Any]:
    """Merge what task, method and backbone files say for these ``facts`` (conditions' values).

    Order, later wins: config.yaml and the method's own keys, the task's ``train`` block, then the
    ``settings`` of method, task and backbone. Returns a new tree without any ``settings``.
    ``values`` are those that each condition may have.

    Raises:
        ConfigError: a file holds a wrong key or condition, or a section that is none.
    """
    problems = _check_files(tree, values)
    if problems:
        raise ConfigError(problems)
    merged = {key: copy(value) for key, value in tree.items() if key != "task"}
    merged["train"].update(tree["task"].get("train") or {})
    for group in ("method", "task", "backbone"):
        for patch in tree[group].get("settings") or []:
            if _holds(patch["for"], facts):
                _merge(merged, {key: patch[key] for key in PATCH_KEYS[1:] if key in patch})
        if group != "task":
            merged[group].pop("settings", None)
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


def copy(value: Any) -> Any:
    """Return ``value`` with its own dicts and lists."""
    if isinstance(value, dict):
        return {key: copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def _check_files(tree: dict[str, Any], values: dict[str, list[str]]) -> list[Problem]:
    task = tree["task"]
    problems = _unknown("task", task, TASK_KEYS)
    for key, section in (("train", tree["train"]), ("task.train", task.get("train") or {})):
        if not isinstance(section, dict):
            allowed = f"a section with keys {', '.join(PATCHED['train'])}"
            problems.append(Problem(key, section, allowed))
    for group in GROUPS:
        settings = tree[group].get("settings") or []
        if not isinstance(settings, list):
            problems.append(Problem(f"{group}.settings", settings, "a list of patches"))
            continue
        for patch in settings:
            problems += _check_patch(f"{group}.settings", patch, values)
    return problems or _check_values(tree)


def _check_values(tree: dict[str, Any]) -> list[Problem]:
    """Return the wrong values of files, those that a later file overrides among them."""
    train, method = tree["train"], {k: v for k, v in tree["method"].items() if k != "settings"}
    kind = METHODS.get(str(method.get("name")), Peft)
    problems = check_section("train", Train, train, whole=False)
    problems += check_section("method", kind, method, whole=False)
    if problems:
        return problems
    changes = [("task.train", tree["task"].get("train") or {})]
    for group in GROUPS:
        for patch in tree[group].get("settings") or []:
            changes.append((f"{group}.settings.train", patch.get("train", {})))
    for where, change in changes:
        problems += check_section(where, Train, {**train, **change}, whole=False)
    return problems


def _check_patch(where: str, patch: Any, values: dict[str, list[str]]) -> list[Problem]:
    if not isinstance(patch, dict) or not isinstance(patch.get("for"), dict):
        return [Problem(where, patch, f"each entry needs for: {{...}} and {PATCH_KEYS[1:]}")]
    problems = _unknown(where, patch, PATCH_KEYS) + _unknown(f"{where}.for", patch["for"], values)
    for key, wanted in patch["for"].items():
        for one in wanted if isinstance(wanted, list) else [wanted]:
            if key in values and one not in values[key]:
                problems.append(Problem(f"{where}.for.{key}", one, nearest(str(one), values[key])))
    for section, known in PATCHED.items():
        changes = patch.get(section, {})
        if isinstance(changes, dict):
            problems += _unknown(f"{where}.{section}", changes, known)
        else:
            allowed = f"a section with keys {', '.join(known)}"
            problems.append(Problem(f"{where}.{section}", changes, allowed))
    return problems


def _unknown(where: str, section: dict[str, Any], known: Any) -> list[Problem]:
    return [
        Problem(f"{where}.{key}", section[key], f"unknown key; {nearest(str(key), known)}")
        for key in section
        if key not in known
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
            tree[key] = copy(value)

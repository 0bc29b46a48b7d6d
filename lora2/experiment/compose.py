"""From the command line to one nested dict: Hydra's groups and overrides."""

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

from lora2 import safe_yaml
from lora2.experiment.layers import GROUPS, copy, leaves
from lora2.experiment.problems import ConfigError, Problem, field_names, nearest
from lora2.experiment.schema import METHODS, RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What says which file was taken: another value would put a run under a name that is not its own.
FIXED = ("method.name", "backbone.name", "backbone.profile")


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
        except (HydraException, ValueError):  # ValueError: a number of thousands of digits
            problems.append(Problem("command line", word, _how_to_write(word)))
            continue
        key, value = override.key_or_group or "command line", override.value()
        problem = _check_word(word, override, configs)
        if problem is not None:
            problems.append(problem)
        elif key in GROUPS:
            choices[key] = str(value)
        else:
            values.pop(key, None)  # in the order of the words that count
            values[key] = value
    for group in ("task", "method"):
        if group not in choices and not any(problem.key == group for problem in problems):
            allowed = ", ".join(options(group, configs))
            problems.append(Problem(group, None, f"say {group}=NAME; allowed: {allowed}"))
    if problems:
        raise ConfigError(problems + _unknown_roots(values))
    return choices, values


def overridden(argv: list[str]) -> list[str]:
    """Return a note for each word that a later one with the same key takes the place of."""
    last = {word.partition("=")[0]: word for word in argv}
    return [
        f"{word}: {later} comes later and counts"
        for word in argv
        if (later := last[word.partition("=")[0]]) != word
    ]


def load(choices: dict[str, str], configs: Path = CONFIGS) -> dict[str, Any]:
    """Compose configs/config.yaml with the chosen groups by Hydra; return plain containers.

    Raises:
        ConfigError: a YAML file cannot be read or composed, or is not what its group needs.
    """
    # Group by group, and cached: a table asks for the same files again for every cell.
    base = _load("", "", configs)
    known = field_names(RunConfig)
    problems = [
        Problem(f"config.yaml: {key}", None, "this key is required")
        for key in known
        if key not in (*GROUPS, *base)
    ]
    problems += [
        Problem(f"config.yaml: {key}", base[key], f"unknown key; {nearest(key, known)}")
        for key in base
        if key not in known
    ]
    tree = dict(base)
    for group, name in choices.items():
        part = _load(group, name, configs)
        others = {key: value for key, value in part.items() if base.get(key, ...) != value}
        tree[group] = others.pop(group, base.get(group))
        problems += [
            Problem(f"{group}/{name}.yaml: {key}", value, f"only keys of {group} stand here")
            for key, value in others.items()
        ]
    problems += [problem for group in GROUPS for problem in _check_group(tree, group, choices)]
    if problems:
        raise ConfigError(problems)
    return {key: copy(value) for key, value in tree.items()}


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Raises:
        ConfigError: not there, not text, or not the YAML that ``lora2.safe_yaml`` reads.
    """
    try:
        return safe_yaml.load(path.read_text(encoding="utf-8"))
    except safe_yaml.YamlError as error:
        raise ConfigError([Problem(str(path), error.line, f"plain YAML; {error}")]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("file", str(path), f"readable UTF-8 text; {error}")]) from error


@functools.lru_cache
def _load(group: str, name: str, configs: Path) -> dict[str, Any]:
    # Hydra's own reader knows anchors and lets its errors through as they are.
    for path in [configs / "config.yaml"] + [configs / group / f"{name}.yaml"] * bool(group):
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ConfigError([Problem(str(path), values, "a mapping of keys to values")])
        problems = [
            Problem(f"{path}: {key}", value, "a plain value; ${...} and ??? are not filled in here")
            for key, value in leaves(values)
            if isinstance(value, str) and ("${" in value or value == "???")
        ]
        if problems:
            raise ConfigError(problems)
    words = [f"{group}={name}"] if group else []
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(configs)):
            composed = compose(config_name="config", overrides=words)
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([Problem(str(configs), words, str(error).strip())]) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _how_to_write(word: str) -> str:
    key, sign, _ = word.partition("=")
    if not sign or not key:
        return "every word must read key=value"
    return f"key=value; a value with signs such as ~ = ( ) , needs quotes: {key}='\"VALUE\"'"


def _check_word(word: str, override: Override, configs: Path) -> Problem | None:
    key, value = override.key_or_group, override.value()
    root = key.partition(".")[0]
    if not _is_plain(override):
        return Problem(key, word, "one plain key=value; grids: scripts/reproduce.py")
    if "${" in str(value):
        return Problem(key, value, "a plain value; ${...} is not filled in here")
    if key in FIXED or (root == "task" and key != "task"):
        known = ", ".join(options(root, configs))
        return Problem(key, value, f"nothing: the file of {root} sets it; {root}=NAME of {known}")
    if key in GROUPS and value not in options(key, configs):
        return Problem(key, value, nearest(str(value), options(key, configs)))
    return None


def _check_group(tree: dict[str, Any], group: str, choices: dict[str, str]) -> list[Problem]:
    section, name = tree.get(group), choices.get(group)
    if not isinstance(section, dict):
        return [Problem(group, section, "a section of keys and values, name among them")]
    given = section.get("name")
    free = group == "method" and given in METHODS  # another file of a method that is ours
    if name is None or given == name or free:
        return []
    return [Problem(f"{group}/{name}.yaml: name", given, f"{name}, as the file is called")]


def _is_plain(override: Override) -> bool:
    changes = override.is_delete() or override.is_add() or override.is_force_add()
    return not (changes or override.is_sweep_override() or override.package)


def _unknown_roots(values: dict[str, Any]) -> list[Problem]:
    known = field_names(RunConfig)
    return [
        Problem(key, value, f"unknown key; {nearest(key.split('.')[0], known)}")
        for key, value in values.items()
        if key.split(".")[0] not in known
    ]

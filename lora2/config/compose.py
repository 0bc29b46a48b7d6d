"""From the command line to one nested dict: the words' values and the chosen files."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from lora2.config import safe_yaml
from lora2.config.layers import GROUPS, copy
from lora2.config.parse_values import word_value
from lora2.config.problems import ConfigError, Problem, field_names, nearest
from lora2.config.schema import METHODS, RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What says which file was taken: another value would put a run under a name that is not its own.
FIXED = ("method.name", "backbone.name", "backbone.profile")
# Signs of Hydra's that change what a key means, the key, a package, and the value's text.
WORD = re.compile(r"([+~]*)([A-Za-z_][\w./-]*)(@[\w.:]*)?(?:=(.*))?", re.DOTALL)
GRID = re.compile(r"\s*([^\s'\"\[{][^'\"]*,|\w+\()")  # a,b or choice(a, b)


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
            key, value = _parse_word(word, configs)
        except ConfigError as error:
            problems += error.problems
            continue
        if key in GROUPS:
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
    """Return configs/config.yaml with the files of the chosen task, method and backbone in it.

    Raises:
        ConfigError: a YAML file cannot be read, or is not what its group needs.
    """
    base = _load(configs / "config.yaml")
    known = field_names(RunConfig)
    problems = [
        Problem(f"config.yaml: {key}", None, "this key is required")
        for key in known
        if key not in ("task", "method", *base)
    ]
    problems += [
        Problem(f"config.yaml: {key}", base[key], f"unknown key; {nearest(str(key), known)}")
        for key in base
        if key not in known
    ]
    default, encoders = base.get("backbone"), options("backbone", configs)
    if default not in encoders:
        problems.append(Problem("config.yaml: backbone", default, nearest(str(default), encoders)))
    if problems:
        raise ConfigError(problems)
    chosen = {"backbone": default, **choices}
    parts = {group: _load(configs / group / f"{name}.yaml") for group, name in chosen.items()}
    problems = [_check_name(group, chosen[group], parts[group]) for group in parts]
    if any(problems):
        raise ConfigError(filter(None, problems))
    return {key: copy(value) for key, value in {**base, **parts}.items()}


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Raises:
        ConfigError: not there, not text, or not the YAML that ``lora2.config.safe_yaml`` reads.
    """
    try:
        return safe_yaml.load(path.read_text(encoding="utf-8"))
    except safe_yaml.YamlError as error:
        raise ConfigError([Problem(str(path), error.line, f"plain YAML; {error}")]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("file", str(path), f"readable UTF-8 text; {error}")]) from error


@functools.lru_cache  # a table asks for the same files again for every cell
def _load(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError([Problem(str(path), values, "a mapping of keys to values")])
    return values


def _parse_word(word: str, configs: Path) -> tuple[str, Any]:
    match = WORD.fullmatch(word)
    changed, key, package, text = match.groups() if match else ("", "", "", None)
    if key and (changed or package or GRID.match(text or "")):
        allowed = "one plain key=value; grids: scripts/reproduce.py"
        raise ConfigError([Problem(key, word, allowed)])
    try:
        value = word_value("," if text is None else text)
    except ValueError as error:
        raise ConfigError([Problem("command line", word, _how_to_write(word))]) from error
    root = key.partition(".")[0]
    if key in FIXED or (root == "task" and key != "task"):
        known = ", ".join(options(root, configs))
        allowed = f"nothing: the file of {root} sets it; {root}=NAME of {known}"
        raise ConfigError([Problem(key, value, allowed)])
    if key in GROUPS and value not in options(key, configs):
        raise ConfigError([Problem(key, value, nearest(str(value), options(key, configs)))])
    return key, value


def _how_to_write(word: str) -> str:
    key, sign, _ = word.partition("=")
    if not sign or not key:
        return "every word must read key=value"
    return f"key=value; a value with signs such as ~ = ( ) , needs quotes: {key}='\"VALUE\"'"


def _check_name(group: str, name: str, section: dict[str, Any]) -> Problem | None:
    given = section.get("name")
    free = group == "method" and given in METHODS  # another file of a method that is ours
    if given == name or free:
        return None
    return Problem(f"{group}/{name}.yaml: name", given, f"{name}, as the file is called")


def _unknown_roots(values: dict[str, Any]) -> list[Problem]:
    known = field_names(RunConfig)
    return [
        Problem(key, value, f"unknown key; {nearest(key.split('.')[0], known)}")
        for key, value in values.items()
        if key.split(".")[0] not in known
    ]

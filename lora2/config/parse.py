"""Read values from YAML files and from the words of a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lora2.config.problems import ConfigError, Problem, ProblemList, field_names, unknown
from lora2.config.schema import SECTIONS, RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# From the config.json of each published encoder.
_SHAPES = Path(__file__).with_name("encoder_shapes.json").read_text(encoding="utf-8")
SHAPES: dict[str, dict[str, Any]] = json.loads(_SHAPES)
GROUPS = ("method", "task", "backbone")  # in the order in which their settings apply
# These say which file was taken: another value would put a run under a wrong name.
FIXED = ("method.name", "backbone.name", "backbone.profile")
WORD = re.compile(r"([A-Za-z_][\w./-]*)=(.*)", re.DOTALL)
MAX_DEPTH = 32  # PyYAML recurses in C, which crashes where Python would raise an error
CONSTANTS = {"null": None, "true": True, "false": False}
# The C loader where PyYAML was built with it: a sweep has hundreds of these files.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Read plain scalars as words are; YAML itself reads 1e-3 as text and 1:30 as 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, _ in node.value:
            text = key.tag == "tag:yaml.org,2002:str"
            if not text or key.value in seen:
                why = f"key {key.value!r} is given twice" if text else "a key must be text"
                raise yaml.constructor.ConstructorError(problem=why, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor(
    "tag:yaml.org,2002:str",
    lambda _, node: node.value if node.style else scalar(node.value or "null"),
)


def parse_yaml(text: str) -> Any:
    """Return the plain values (dict, list, str, int, float, bool, None) of a YAML text.

    ValueError, with line and column, refuses tags of Python objects, anchors and aliases (a few
    lines of them can stand for gigabytes), a key given twice, and texts nested too deeply.
    """
    depth = 0
    try:
        for event in yaml.parse(text, _Base):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            anchored = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)
            if anchored or depth > MAX_DEPTH:
                why = "anchors and aliases are refused" if anchored else f"over {MAX_DEPTH} levels"
                raise yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ValueError(why) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a file; ConfigError if it is no mapping in plain YAML."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), "", "plain YAML in UTF-8", str(error))]) from error
    if not isinstance(values, dict):
        raise ConfigError([Problem(str(path), values, "a mapping of keys to values")])
    return values


def word_value(text: str) -> Any:
    """Return the value of ``key=text``: YAML in brackets or quotes, or a single scalar.

    ValueError: brackets or quotes are left open.
    """
    text = text.strip()
    return parse_yaml(text) if text.startswith(tuple("[{'\"")) else scalar(text)


def word_list(text: str) -> list[str]:
    """Return the parts of ``a,b`` or ``[a,b]``; none of an empty text."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip() for part in inner.split(",")] if inner else []


def scalar(text: str) -> Any:
    """Return the number, truth value or None that ``text`` is written for, else the text."""
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def options(group: str, configs: Path = CONFIGS) -> list[str]:
    """Return what ``group=`` may name: the YAML files of configs/<group>."""
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def parse_words(argv: Sequence[str], configs: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Split command-line words into group choices and typed values (dotted key -> value)."""
    values, problems = dict[str, Any](), ProblemList()
    for word in argv:
        with problems.collect():
            key, value = _parse_word(word, configs)
            values.pop(key, None)  # in the order of the words that count
            values[key] = value
    choices = {group: str(values.pop(group)) for group in GROUPS if group in values}
    for group in ("task", "method"):
        if group not in choices and not any(problem.key == group for problem in problems):
            allowed = ", ".join(options(group, configs))
            problems.append(Problem(group, None, allowed, f"{group}=NAME is missing"))
    roots = field_names(RunConfig)
    for key, value in values.items():
        if problems and (root := key.split(".")[0]) not in roots:
            problems.append(unknown(key, value, roots, "unknown key", root))
    problems.raise_if_any()
    return choices, values


def _parse_word(word: str, configs: Path) -> tuple[str, Any]:
    match = WORD.fullmatch(word)
    if match is None:
        raise ConfigError([Problem("command line", word, "words of the form key=value")])
    key, text = match.groups()
    try:
        value = word_value(text)
    except ValueError as error:
        allowed = "[a, b], {a: 1} or text, which needs quotes if it starts with a bracket"
        raise ConfigError([Problem(key, text, allowed, str(error))]) from error
    root = key.partition(".")[0]
    names = options(root, configs)
    if key in FIXED or (root == "task" and key != "task"):
        allowed = f"{root}=NAME of {', '.join(names)}"
        raise ConfigError([Problem(key, value, allowed, f"set by {root}=NAME")])
    if key in SECTIONS and key not in GROUPS:
        keys = ", ".join(field_names(SECTIONS[key]))
        raise ConfigError([Problem(key, value, f"a section with keys {keys}: {key}.KEY=VALUE")])
    if key in GROUPS and value not in names:
        raise ConfigError([unknown(key, value, names)])
    return key, value

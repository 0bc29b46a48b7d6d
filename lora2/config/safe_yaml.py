"""YAML as plain data, from a file that may be broken or hostile."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
# The C loader where PyYAML was built with it: a sweep has hundreds of these files.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """A text is not the plain YAML that this project writes and reads; the message says where.

    ``line`` is the text of the line at fault, where one is.
    """

    def __init__(self, message: str, line: str = ""):
        super().__init__(message)
        self.line = line


class Loader(_Base):
    """Safe construction that does not let the later of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is None or name in seen:
                what = "a key must be a word" if name is None else f"key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=what, problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(text: str, loader: type[Loader] = Loader) -> Any:
    """Return the plain values (dict, list, str, int, float, bool, None, date) of a YAML text.

    Refused: tags of Python objects, anchors and aliases (a few lines of them can stand for
    gigabytes), the same key twice, and more than MAX_DEPTH levels or MAX_CHARACTERS characters.

    Raises:
        YamlError: naming line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"{len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        _check_events(text)
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        raise _explain(error, text) from error


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused("anchors and aliases are not read here", event)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels", event)


def _refused(why: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)


def _explain(error: Exception, text: str) -> YamlError:
    mark = getattr(error, "problem_mark", None)
    why = " ".join(str(getattr(error, "problem", None) or error).split())
    if mark is None:
        return YamlError(why)
    lines = text.splitlines()[mark.line : mark.line + 1]
    return YamlError(
        f"line {mark.line + 1}, column {mark.column + 1}: {why}", "".join(lines).strip()
    )

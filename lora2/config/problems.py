"""What is wrong with a configuration, said all at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")  # pydantic's names


@dataclasses.dataclass(frozen=True)
class Problem:
    """One refused key: where, what was given, what is allowed."""

    key: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        given = repr(self.value)
        given = given if len(given) <= 80 else given[:77] + "..."
        return f"{self.key} = {given}: {self.allowed}"


class ConfigError(ValueError):
    """A configuration was refused; ``problems`` names every key at fault."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"{len(self.problems)} {noun} in the configuration:\n{lines}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``allowed: ...`` for an unknown name, its likeliest spelling first."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(known)}" if known else "no key is allowed here"


def check_section(name: str, kind: type, values: Any, *, whole: bool = True) -> list[Problem]:
    """Return every problem of one section (``train``, ``method``, ...) against its dataclass.

    Of a section that is not ``whole`` other files may set the keys that are missing.
    """
    if not isinstance(values, dict):
        return [Problem(name, values, f"a section with keys {', '.join(field_names(kind))}")]
    try:
        kind(**values)
    except ValidationError as error:
        found = [detail for detail in error.errors() if whole or detail["type"] not in MISSING]
        return _one_each([_explain(name, kind, detail) for detail in found])
    return []


def _one_each(problems: list[Problem]) -> list[Problem]:
    """Join what pydantic says of each alternative of one key, such as a number or 'auto'."""
    allowed: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        allowed.setdefault((problem.key, repr(problem.value)), []).append(problem)
    return [
        dataclasses.replace(same[0], allowed=", or ".join(one.allowed for one in same))
        for same in allowed.values()
    ]


def field_names(kind: type) -> list[str]:
    """Return the keys that a section's dataclass declares."""
    return [field.name for field in dataclasses.fields(kind)]


def _explain(section: str, kind: type, detail: Any) -> Problem:
    # A part such as constrained-float or literal['auto'] names an alternative, not a key.
    first, *rest = (str(part) for part in detail["loc"])
    path = [first, *(part for part in rest if not re.search(r"[\[-]", part))]
    key = ".".join([section, *path]) if section else ".".join(path)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return Problem(key, detail["input"], f"unknown key; {nearest(path[-1], field_names(kind))}")
    if detail["type"] in MISSING:
        return Problem(key, None, "this key is required and no file sets it")
    message = detail["msg"]
    return Problem(key, detail["input"], message[0].lower() + message[1:])

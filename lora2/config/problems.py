"""Collect the problems of a configuration and report them all at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")  # pydantic's names


@dataclasses.dataclass(frozen=True)
class Problem:
    """One refused key: the value given, what is allowed instead, and what is wrong with it."""

    key: str
    value: Any
    allowed: str = ""
    wrong: str = ""  # left out where ``allowed`` alone makes it plain

    def __str__(self) -> str:
        given = repr(self.value)
        given = given if len(given) <= 80 else given[:77] + "..."
        allowed = f"allowed: {self.allowed}" if self.allowed else ""
        joint = " " if self.wrong.endswith("?") else "; "
        return f"{self.key} = {given}: {joint.join(filter(None, (self.wrong, allowed)))}"


class ConfigError(ValueError):
    """A configuration was refused; ``problems`` names every key at fault, each once."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list({str(problem): problem for problem in problems}.values())
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"{len(self.problems)} {noun} in the configuration:\n{lines}")


class ProblemList(list[Problem]):
    """Problems of several steps, so that all of them are reported together."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add the problems of a ``ConfigError`` raised in the block, and go on after it."""
        try:
            yield
        except ConfigError as error:
            self += error.problems

    def raise_if_any(self) -> None:
        if self:
            raise ConfigError(self)


def unknown(key: str, value: Any, known: Iterable[str], wrong: str = "", name: str = "") -> Problem:
    """Return the problem of a ``name`` (or value) outside ``known``, with the closest spelling."""
    known = sorted(known)
    close = difflib.get_close_matches(name or str(value), known, n=1)
    hints = filter(None, [wrong, *(f"did you mean {spelling}?" for spelling in close)])
    return Problem(key, value, ", ".join(known) or "no key here", "; ".join(hints))


def unknown_keys(where: str, section: dict[str, Any], known: Iterable[str]) -> Iterator[Problem]:
    """Yield the keys of ``section`` that are not among ``known``; ``where`` goes before each."""
    known = list(known)
    for key in (key for key in section if key not in known):
        yield unknown(where + key, section[key], known, "unknown key", key)


def field_names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def check_section(name: str, kind: type, values: Any, *, whole: bool = True) -> list[Problem]:
    """Return every problem of one section (``train``, ``method``, ...) against its dataclass.

    Keys may be missing from a section that is not ``whole``: other files set them.
    """
    if not isinstance(values, dict):
        return [Problem(name, values, f"a section with keys {', '.join(field_names(kind))}")]
    problems: dict[tuple[str, str], Problem] = {}
    try:
        kind(**values)
    except ValidationError as error:
        for detail in error.errors():
            if whole or detail["type"] not in MISSING:
                problem = _explain(name, kind, detail)
                before = problems.get(place := (problem.key, repr(problem.value)))
                if before:  # pydantic names each alternative, such as a number or 'auto'
                    allowed = f"{before.allowed}, or {problem.allowed}"
                    problem = dataclasses.replace(problem, allowed=allowed)
                problems[place] = problem
    return list(problems.values())


def _explain(section: str, kind: type, detail: Any) -> Problem:
    # A part such as constrained-float or literal['auto'] names an alternative, not a key.
    first, *rest = (str(part) for part in detail["loc"])
    parts = [section, first, *(part for part in rest if not re.search(r"[\[-]", part))]
    key = ".".join(filter(None, parts))
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown(key, detail["input"], field_names(kind), "unknown key", first)
    if detail["type"] in MISSING:
        return Problem(key, None, wrong="this key is required and no file sets it")
    allowed = detail["msg"].removeprefix("Input should be ")
    allowed = allowed.replace("a valid boolean", "a boolean, true or false")
    allowed = re.sub(r" after validation, not \d+", "", allowed)
    names = re.findall(r"'([^']+)'", allowed) if detail["type"] == "literal_error" else []
    hint = unknown(key, detail["input"], names).wrong
    return Problem(key, detail["input"], allowed[0].lower() + allowed[1:], hint)

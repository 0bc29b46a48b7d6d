"""The arguments of PEFT's methods, read from PEFT's source: to import it takes seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora2 import tuners
from lora2.experiment.problems import Problem, nearest

OURS = ("task_type", "peft_type", "inference_mode")  # set for every run


def check_peft(method: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with the type and the names of the arguments of ``method=peft``."""
    kind, args = method.get("type"), method.get("args")
    if not isinstance(kind, str) or not isinstance(args, dict):
        return []
    known = arguments(tuple(tuners.__path__))
    if kind.upper() not in known:
        return [Problem("method.type", kind, nearest(kind.upper(), known))]
    fields = known[kind.upper()] - set(OURS)
    return [
        Problem(f"method.args.{key}", value, f"unknown to {kind}; {nearest(str(key), fields)}")
        for key, value in args.items()
        if key not in fields
    ]


@functools.cache
def arguments(ours: tuple[str, ...]) -> dict[str, set[str]]:
    """Return the fields of each type's config class: PEFT's, and those in the folders ``ours``."""
    classes = {one.name: one for path in _sources(ours) for one in _classes(path)}
    return {kind: _fields(one, classes) for one in classes.values() for kind in _types(one)}


def _sources(ours: Sequence[str]) -> Iterator[Path]:
    spec = importlib.util.find_spec("peft")  # a top-level package is found, not imported
    for place in (spec.submodule_search_locations or []) if spec else []:
        for pattern in ("config.py", "tuners/*.py", "tuners/*/config.py"):
            yield from sorted(Path(place).glob(pattern))
    for place in ours:
        yield from sorted(Path(place).glob("*/*.py"))


def _classes(path: Path) -> list[ast.ClassDef]:
    text = path.read_text(encoding="utf-8")
    if not re.search(r"^class \w*(Config|Mixin)\b", text, re.MULTILINE):
        return []
    return [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


def _types(one: ast.ClassDef) -> Iterator[str]:
    """Yield the types a class names: ``self.peft_type = PeftType.LORA``, or a call with "LORA"."""
    for node in ast.walk(one):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self.peft_type":
            if isinstance(node.value, ast.Attribute):
                yield node.value.attr
            elif isinstance(node.value, ast.Call) and node.value.args:
                yield str(ast.literal_eval(node.value.args[0]))


def _fields(one: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the arguments of a dataclass and of its bases, fields with ``init=False`` left out."""
    bases = [classes[ast.unparse(base)] for base in one.bases if ast.unparse(base) in classes]
    own = {
        node.target.id
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if node.value is None or "init=False" not in ast.unparse(node.value)
    }
    return own.union(*(_fields(base, classes) for base in bases))

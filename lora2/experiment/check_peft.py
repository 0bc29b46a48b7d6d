"""The arguments of PEFT's methods, read from PEFT's source: to import it takes seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora2 import tuners
from lora2.experiment.problems import Problem, nearest

# Set for every run, and by which key where there is one.
OURS = {
    "task_type": "nothing: every run sets it",
    "peft_type": "nothing: method.type says it",
    "inference_mode": "nothing: every run sets it",
    "modules_to_save": "nothing: backbone.head_modules says it",
}
RANKS = ("r", "init_r", "target_r", "rank")
PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict,
         "Optional": typing.Optional, "Union": typing.Union, "Literal": typing.Literal,
         "Any": Any}  # fmt: skip
Fields = dict[str, str]


def check_peft(method: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with the type and the arguments of ``method=peft``."""
    kind, args = method.get("type"), method.get("args")
    if not isinstance(kind, str) or not isinstance(args, dict):
        return []
    known = arguments(tuple(tuners.__path__))
    if kind.upper() not in known:
        return [Problem("method.type", kind, nearest(kind.upper(), known))]
    fields, targets = known[kind.upper()], method.get("target_modules")
    found = list(_target_modules(kind, fields, args, targets))
    for key, value in args.items():
        name = f"method.args.{key}"
        if key in OURS:
            found.append(Problem(name, value, OURS[key]))
        elif key not in fields:
            unknown = nearest(str(key), fields.keys() - OURS)
            found.append(Problem(name, value, f"unknown to {kind}; {unknown}"))
        elif not _fits(fields[key], value):
            found.append(Problem(name, value, f"{kind} takes {fields[key]}"))
        elif key in RANKS and isinstance(value, int) and value < 1:
            found.append(Problem(name, value, "at least 1"))
        elif key.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            found.append(Problem(name, value, "at least 0 and less than 1"))
    return found


def _target_modules(
    kind: str, fields: Fields, args: dict[str, Any], targets: Any
) -> Iterator[Problem]:
    if targets is None:
        return
    if "target_modules" not in fields:
        yield Problem("method.target_modules", targets, f"null: {kind} adapts no chosen modules")
    elif "target_modules" in args:
        allowed = f"nothing beside method.target_modules, which is {targets}"
        yield Problem("method.args.target_modules", args["target_modules"], allowed)


def _fits(annotation: str, value: Any) -> bool:
    """Tell whether ``value`` is what a field's annotation says, as far as it is of plain types."""
    try:
        TypeAdapter(_plain_type(annotation)).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@functools.cache
def _plain_type(annotation: str) -> Any:
    """Return the type that an annotation stands for, with Any for what PEFT itself defines."""
    tree = _Plain().visit(ast.parse(annotation, mode="eval"))
    code = compile(ast.fix_missing_locations(tree), "<annotation>", "eval")
    return eval(code, {"__builtins__": {}}, PLAIN)


class _Plain(ast.NodeTransformer):
    """Keeps builtin types, unions and literals of an annotation; everything else becomes Any."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return node if node.id in PLAIN else ast.Name("Any", ast.Load())

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name("Any", ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return ast.Name("Any", ast.Load())

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        pattern = name == "Literal" and "[" in ast.unparse(node.slice)  # 'pissa_niter_[number]'
        if name not in PLAIN or pattern:
            return ast.Name("Any", ast.Load())
        return node if name == "Literal" else self.generic_visit(node)


@functools.cache
def arguments(ours: tuple[str, ...]) -> dict[str, Fields]:
    """Return the annotated fields of each type's config class: PEFT's, and those in ``ours``."""
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


def _fields(one: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Fields:
    """Return the arguments of a dataclass and of its bases, fields with ``init=False`` left out."""
    fields: Fields = {}
    for base in reversed(one.bases):
        if ast.unparse(base) in classes:
            fields |= _fields(classes[ast.unparse(base)], classes)
    return fields | {
        node.target.id: ast.unparse(node.annotation)
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if node.value is None or "init=False" not in ast.unparse(node.value)
    }

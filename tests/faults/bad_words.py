"""Command lines that are wrong in one place each, made from the schema."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from lora2.config import schema

# What no value of a type is: the word's text and how a refusal prints it.
NOT_INTEGERS = {"abc": "'abc'", "1.5": "1.5", "true": "True", "[1]": "[1]", "'1'": "'1'"}
NOT_NUMBERS = {"abc": "'abc'", "nan": "nan", "inf": "inf", "true": "True", "'1'": "'1'"}
NOT_TEXT = {"5": "5", "[a]": "['a']"}
WRONG = {
    "Count": {**NOT_INTEGERS, "0": "0", "-1": "-1"},
    "Steps": {**NOT_INTEGERS, "-1": "-1"},
    "RunSteps": {**NOT_INTEGERS, "0": "0", "100000001": "100000001"},
    "Annotated[int, Field(ge=8)]": {**NOT_INTEGERS, "7": "7"},
    "Seed": {
        **NOT_INTEGERS,
        "-1": "-1",
        "4294967296": "4294967296",
    },
    "Positive": {**NOT_NUMBERS, "0": "0", "-1.5": "-1.5"},
    "Epochs": {**NOT_NUMBERS, "0": "0", "10001": "10001"},
    "NonNegative": {**NOT_NUMBERS, "-1": "-1"},
    "Fraction": {**NOT_NUMBERS, "1": "1", "-0.1": "-0.1"},
    "bool": {"1": "1", "yes": "'yes'", "abc": "'abc'"},
    "str": NOT_TEXT,
    "Revision": {**NOT_TEXT, "../main": "'../main'", "a//b": "'a//b'"},
    "Targets": {"5": "5", "query": "'query'", "[]": "[]"},
    "Annotated[str, Field(min_length=1)]": NOT_TEXT,
    "Annotated[list[Head], Field(min_length=1)]": {"5": "5", "[]": "[]"},
    "list[TaskName]": {"5": "5", "rte": "'rte'"},
    "list[str]": {"5": "5", "tensorboard": "'tensorboard'"},
    "dict[Target, Module]": {"5": "5", "[a]": "['a']"},
    "dict[str, Any]": {"5": "5", "[a]": "['a']"},
    "Literal": {"xyz": "'xyz'", "5": "5", "[a]": "['a']"},
}
METHODS = {**schema.METHODS, "peft": schema.Peft}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Words of one script, and what its refusal must hold: key, value as printed, allowed."""

    words: tuple[str, ...]
    key: str
    value: str
    allowed: str
    script: str = "run_glue"

    def __str__(self) -> str:
        return f"{self.script}.py {' '.join(self.words)}"[:150]


def base(method: str = "lora2") -> tuple[str, ...]:
    return ("task=rte", f"method={method}", "backbone=embedded")


def values(kind: type, section: str, words: tuple[str, ...]) -> Iterator[Wrong]:
    """Every key of a section with every value that is not of its type or out of its range."""
    for field in dataclasses.fields(kind):
        key = f"{section}.{field.name}".lstrip(".")
        if field.name in ("name", "profile", "task"):
            continue  # refused whatever the value: see by_hand
        types = [part.strip() for part in str(field.type).split(" | ")]
        literal = str(field.type).startswith("Literal")
        allowed = _one_of(re.findall(r"'([^']+)'", str(field.type))) if literal else ""
        for text, shown in WRONG["Literal" if literal else types[0]].items():
            yield Wrong((*words, f"{key}={text}"), key, shown, allowed)
        optional = "None" in types or field.name in ("protocol", "dir", "source")
        if not optional and field.default is dataclasses.MISSING:
            yield Wrong((*words, f"{key}=null"), key, "None", allowed)


def _one_of(options: list[str]) -> str:
    *first, last = [f"'{one}'" for one in options]
    return f"{', '.join(first)} or {last}" if first else last


def spellings(kind: type, section: str, words: tuple[str, ...]) -> Iterator[Wrong]:
    """Every key of a section with its last letter left out, doubled, or in capitals."""
    names = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        for slip in {name[:-1], name + name[-1], name.upper(), name.replace("_", "-")} - {
            *names,
            "",
        }:
            yield Wrong((*words, f"{section}.{slip}=1"), f"{section}.{slip}", "1", "unknown key; ")


def from_schema() -> Iterator[Wrong]:
    """All wrong values and slips of spelling of all sections and methods."""
    for section, kind in schema.SECTIONS.items():
        yield from values(kind, section, base())
        yield from spellings(kind, section, base())
    for method, kind in METHODS.items():
        yield from values(kind, "method", base(method))
        yield from spellings(kind, "method", base(method))
    yield from values(schema.Identity, "", base())

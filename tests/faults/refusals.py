"""Runs a script's main in this process, up to where it would begin to work."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.faults.bad_words import Wrong

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = 77
SECONDS = 3.0  # of processor time: other tests share the machine


def fresh(name: str) -> ModuleType:
    """Return scripts/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"bad_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def script(name: str) -> ModuleType:
    """Return scripts/<name>.py as a module that ends with ACCEPTED instead of working."""
    module = fresh(name)
    if name == "run_glue":
        module.execute = lambda *args, **kwargs: ACCEPTED
    else:
        module.sweep = accept
        module.show_plan = lambda *args, **kwargs: ACCEPTED
    return module


def accept(*args: object) -> None:
    raise SystemExit(ACCEPTED)


def call(name: str, words: Sequence[str]) -> tuple[int, str, float]:
    """Return exit code, what was printed to stderr, and processor seconds of a script's main."""
    printed = io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = script(name).main(list(words))
        except SystemExit as end:
            assert end.code == ACCEPTED
            code = ACCEPTED
    return code, printed.getvalue(), time.process_time() - started


def fault(wrong: Wrong, code: int, printed: str, seconds: float) -> str | None:
    """Return what a refusal lacks: exit code 2, key, value, what is allowed, in time; or None."""
    if code != 2 or "Traceback" in printed:
        return f"{wrong}: exit code {code}, {printed!r}"
    if not any(_names(wrong, line) for line in printed.splitlines()):
        return f"{wrong}: no line names {wrong.key}, {wrong.value} and {wrong.allowed!r}: {printed}"
    return f"{wrong}: took {seconds:.1f} s" if seconds > SECONDS else None


def _names(wrong: Wrong, line: str) -> bool:
    head, _, rest = line.strip().partition(" = ")
    said = rest[len(wrong.value) :].partition(": ")[2].strip()
    same_key = head.removesuffix(".[key]") == wrong.key
    return same_key and rest.startswith(wrong.value) and bool(said) and wrong.allowed in rest

"""A wrong line in any file of a configs folder is refused like a wrong word: by key and value."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora2.config import load as config
from lora2.sweep import request
from lora2.sweep import table as tableplan
from tests.faults import bad_yaml, refusals
from tests.faults.bad_words import Wrong
from tests.faults.bad_yaml import Broken


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """A copy of the configs folder that both scripts read instead of the repository's."""
    folder = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, folder)
    resolve = functools.partial(config.resolve, configs=folder)
    monkeypatch.setattr(refusals.script("run_glue"), "resolve", resolve)
    monkeypatch.setattr(tableplan, "resolve", resolve)
    for name in ("load_table", "load_profile", "options"):
        original = getattr(request, name)
        monkeypatch.setattr(request, name, functools.partial(original, configs=folder))
    monkeypatch.setattr(request, "CONFIGS", folder)
    monkeypatch.setattr(tableplan, "load_table", request.load_table)
    monkeypatch.setattr(config, "_mapping", _cached_by_content())
    return folder


def _cached_by_content() -> Any:
    """Return ``load._mapping`` with a cache that sees a file change, as a new process would."""
    load, kept = config._mapping.__wrapped__, dict[Any, Any]()

    def cached(path: Path) -> Any:
        key = (path, path.read_bytes())
        if key not in kept:
            kept[key] = load(path)
        return kept[key]

    return cached


def break_file(configs: Path, one: Broken) -> str:
    """Write the broken file and return what stood there."""
    path = configs / one.path
    text = path.read_text()
    assert one.old in text, one
    path.write_text(text.replace(one.old, one.new, 1) if one.old else one.new)
    return text


def fault(configs: Path, one: Broken) -> str | None:
    whole = break_file(configs, one)
    code, printed, seconds = refusals.call(one.script, one.words)
    (configs / one.path).write_text(whole)
    shown = "\n".join(
        line.replace(f"{configs}/", "").replace(str(configs), "configs")
        for line in printed.splitlines()
    )
    wrong = Wrong((str(one),), one.key, one.value, one.allowed, one.script)
    return refusals.fault(wrong, code, shown, seconds)


@pytest.mark.parametrize("kind", ["NOT_YAML", "METHODS", "REST", "TABLES"])
def test_what_a_file_says_wrong_is_named_with_what_is_allowed(configs, kind):
    found = [fault(configs, one) for one in getattr(bad_yaml, kind)]
    assert not any(found), "\n".join(filter(None, found))

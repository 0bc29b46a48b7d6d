from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import lora2

SOURCE = Path(lora2.__file__)

BARE_IMPORT = """
import sys
import lora2
import lora2.config
assert not {"torch", "peft", "transformers"} & set(sys.modules), "not light"
from peft.utils import PeftType
assert "LORA2" not in PeftType.__members__, "an import hook?"
lora2.register()
lora2.register()
print(*[PeftType[name].value for name in ("LORA2", "SORA", "LORA_XS")])
"""


def test_a_bare_import_is_light_and_register_registers():
    done = subprocess.run(
        [sys.executable, "-c", BARE_IMPORT],
        cwd=SOURCE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["LORA2", "SORA", "LORA_XS"], done.stderr


@pytest.mark.parametrize("peft_is_there", [True, False])
def test_an_import_registers_at_once_only_beside_peft(monkeypatch, peft_is_there):
    imported, really = [], importlib.import_module

    def record(name, *args):
        imported.append(name)
        return really(name, *args)

    monkeypatch.setattr(importlib, "import_module", record)
    if not peft_is_there:
        monkeypatch.delitem(sys.modules, "peft")
    spec = importlib.util.spec_from_file_location("lora2_again", SOURCE)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert ("lora2.tuners.lora2" in imported) == peft_is_there


def test_every_public_name_can_be_had():
    for name in lora2.__all__:
        assert getattr(lora2, name).__name__ == name
    assert set(lora2.__all__) <= set(dir(lora2))
    with pytest.raises(AttributeError, match="no attribute 'Lora3Config'"):
        lora2.Lora3Config  # noqa: B018
